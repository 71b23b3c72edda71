"""Batches as they are handed in: copied and checked, since whoever handed one in may use its tensors again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from riskaudit.errors import GuardError
from riskaudit.release import Batch


def held_batch(given: Batch | Sequence[Any]) -> Batch | Sequence[Any]:
    """A copy of a batch for a review that comes later; what is none is held as it is, for the review to refuse."""
    parts = _parts(given)
    return given if parts is None else [part.clone() for part in parts]


def refuse_changed(given: Batch | Sequence[Any], held: Batch | Sequence[Any]) -> None:
    """Compare a batch with what `held_batch` made of it before an update was made.

    Raises:
        GuardError: it has changed, so the update may be of either.
    """
    now, before = _parts(given), _parts(held)
    if held is not given and (now is None or before is None or not all(map(_same, now, before))):
        raise GuardError("the batch changed while the update was made of it; change a copy of it, or hand that over")


def check_batch(given: Batch | Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Copies of the inputs and targets of a batch that can be reviewed.

    Raises:
        GuardError: it can't.
    """
    if not isinstance(given, Batch) and (isinstance(given, Mapping) or not isinstance(given, Iterable)):
        raise GuardError(
            f"expected a batch as a pair (inputs, targets), found a {type(given).__name__}; hand over the two tensors "
            "that the model and the loss take"
        )
    pair = (given.inputs, given.targets) if isinstance(given, Batch) else tuple(given)
    if len(pair) != 2:
        raise GuardError(f"expected a batch of inputs and targets, found {len(pair)} things")
    try:
        # Copies, since the caller's own tensors may be used again before the review is done.
        inputs, targets = (torch.as_tensor(part).detach().clone() for part in pair)
    except Exception as error:  # what was handed in may be anything
        kinds = " and ".join(type(part).__name__ for part in pair)
        raise GuardError(
            f"expected inputs and targets as one tensor (or array) each, found {kinds} that can't be made into any; "
            "hand over the two tensors that the model and the loss take"
        ) from error
    if not inputs.ndim or not len(inputs):
        raise GuardError("expected a batch of at least one sample, found none")
    if not targets.ndim or len(inputs) != len(targets):
        raise GuardError(f"expected as many targets as inputs, found {len(inputs)} inputs and targets of other length")
    if not inputs.is_floating_point():
        raise GuardError(f"expected inputs in floating point, found {inputs.dtype}; embed or scale them first")
    if not bool(torch.isfinite(inputs).all()) or not bool(torch.isfinite(targets.double()).all()):
        raise GuardError("the batch holds something that isn't a finite number")
    return inputs, targets


def _parts(given: Batch | Sequence[Any]) -> list[Tensor] | None:
    """Inputs and targets as tensors that share their memory; None where they aren't two arrays of numbers."""
    try:
        pair = (given.inputs, given.targets) if isinstance(given, Batch) else tuple(given)
        parts = [torch.as_tensor(part).detach() for part in pair]
    except Exception:  # what was handed in may be anything
        return None
    return parts if len(parts) == 2 else None


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)
