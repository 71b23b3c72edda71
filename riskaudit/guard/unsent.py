"""Weights of models that hold training which never left, so that no later round begins at them.

A round that was withheld, or left with noise added to it, is still in the model until the server's weights are loaded.
A next round that began there would be reviewed by what it adds alone, and its weights would take the withheld training
along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from riskaudit.errors import GuardError
from riskaudit.guard.decision import Decision
from riskaudit.inputs.identifiers import hash_tensors

# Digests of trained parameters that never left, by name: of a model, whichever guard it had.
_unsent: WeakKeyDictionary[nn.Module, dict[str, set[bytes]]] = WeakKeyDictionary()
# The weights at the beginning of the rounds that decisions are about.
_starts: WeakKeyDictionary[Decision, Mapping[str, Tensor]] = WeakKeyDictionary()


def remember_unsent(
    model: nn.Module, decision: Decision, start: Mapping[str, Tensor], left: Mapping[str, Tensor]
) -> None:
    """Remember what of a model's trained parameters never left.

    Args:
        model: after a round.
        decision: about the round.
        start: the state dict at the round's beginning.
        left: weights that may leave, by name; empty where none may.
    """
    _starts[decision] = start
    _remember(model, start, left)


def remember_withheld(model: nn.Module, decision: Decision) -> None:
    """The same of a round that was let pass and withheld after all."""
    if decision in _starts:
        _remember(model, _starts[decision], {})


def _remember(model: nn.Module, start: Mapping[str, Tensor], left: Mapping[str, Tensor]) -> None:
    for name, value in model.named_parameters():
        weights = value.detach()
        known = [each[name].to(weights.device) for each in (start, left) if name in each]
        if value.requires_grad and not weights.is_meta and not any(_is_equal(weights, each) for each in known):
            _unsent.setdefault(model, {}).setdefault(name, set()).add(_digest(weights))


def refuse_unsent(model: nn.Module) -> None:
    """Refuse to begin a round at weights that hold training which never left.

    Raises:
        GuardError: one of the parameters holds it.
    """
    unsent = _unsent.get(model, {})
    for name, value in model.named_parameters():
        if name in unsent and not value.is_meta and _digest(value.detach()) in unsent[name]:
            raise GuardError(
                f"{name} still holds the training of a round that was withheld, or changed before it left, and would "
                "take it along; load what the server sent before the next round is recorded"
            )


def _is_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))


def _digest(weights: Tensor) -> bytes:
    digest = hashlib.sha256()
    hash_tensors(digest, [("", weights)])
    return digest.digest()
