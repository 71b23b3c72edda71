"""Weights of models that hold training which never left, so that no later round begins at them.

A round that was withheld, or left with noise added to it, is still in the model until the server's weights are loaded.
A next round that began there would be reviewed by what it adds alone, and its weights would take the withheld training
along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from riskaudit.errors import GuardError
from riskaudit.guard.decision import Decision
from riskaudit.inputs.identifiers import hash_tensors

_Digests = dict[str, bytes]
# Digests of trained entries of the state dict that never left, by name: of a model, whichever guard it had.
_unsent: WeakKeyDictionary[nn.Module, dict[str, set[bytes]]] = WeakKeyDictionary()
# Of the rounds that decisions are about: at the beginning, and once they were trained.
_rounds: WeakKeyDictionary[Decision, tuple[_Digests, _Digests]] = WeakKeyDictionary()


def remember_unsent(
    model: nn.Module, decision: Decision, start: Mapping[str, Tensor], left: Mapping[str, Tensor]
) -> None:
    """Remember what of a round's training never left.

    Args:
        model: after a round.
        decision: about the round.
        start: the state dict at the round's beginning.
        left: entries that may leave, by name; empty where none may.
    """
    began, trained = _digests(start), _digests(model.state_dict())
    _rounds[decision] = began, trained
    _remember(model, trained, began, _digests(left))


def remember_withheld(model: nn.Module, decision: Decision) -> None:
    """The same of a round that was let pass and withheld after all, and of what became of the model since."""
    if decision in _rounds:
        began, trained = _rounds[decision]
        _remember(model, trained, began)
        _remember(model, _digests(model.state_dict()), began)


def _remember(model: nn.Module, digests: _Digests, *known: _Digests) -> None:
    """Entries that aren't among those that are known to the server."""
    for name, digest in digests.items():
        if all(each.get(name) != digest for each in known):
            _unsent.setdefault(model, {}).setdefault(name, set()).add(digest)


def refuse_unsent(model: nn.Module) -> None:
    """Refuse to begin a round at weights that hold training which never left.

    Raises:
        GuardError: an entry of the state dict holds it.
    """
    unsent = _unsent.get(model)
    if unsent is None:
        return
    for name, digest in _digests(model.state_dict()).items():
        if digest in unsent.get(name, ()):
            raise GuardError(
                f"{name} still holds the training of a round that was withheld, or changed before it left, and would "
                "take it along; load what the server sent before the next round is recorded"
            )


def _digests(state: Mapping[str, Tensor]) -> _Digests:
    """Of entries that take more than a few values: parameters, frozen ones too, and running statistics."""
    return {name: _digest(value) for name, value in state.items() if value.is_floating_point()}


def _digest(weights: Tensor) -> bytes:
    digest = hashlib.sha256()
    hash_tensors(digest, [("", weights)])
    return digest.digest()
