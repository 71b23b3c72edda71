"""What frameworks exchange, as the guard sees it: weights came, one local step was taken, weights go back.

    weights:     gradient = (received - outgoing) / step_size
    difference:  gradient = -outgoing / step_size
    gradient:    gradient = outgoing

Float32 weights w carry an error of about 6e-8 |w|, hence the gradient one of 6e-8 |w| / step_size. Where that is more
than the guard allows between an update and the batch's own gradient (guard.client.TOLERANCE, or the noise), the
update is withheld; send gradients then. Several local steps, momentum and weight decay aren't one gradient of one
batch, and are withheld for the same reason where no noise hides them. Under noise it can't be seen: whoever makes a
`LocalStep` says that there was one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from riskaudit.errors import GuardError, SettingsError
from riskaudit.guard import Decision, Guard
from riskaudit.release import Batch

Array: TypeAlias = npt.NDArray[Any]
Kind = Literal["weights", "difference", "gradient"]


@dataclass(frozen=True, eq=False)
class LocalStep:
    """What the training function knows and the exchanged arrays don't show: above all that it took one step.

    Attributes:
        guard: with the model that was trained; its weights are set to the received ones during the review.
        batch: inputs [B, ...] in data units and targets [B, ...] of the one step.
        step_size: learning rate of the one step of plain SGD; None where the gradient itself is sent.
        ids: of the samples, for a ledger; see `Guard.review`.
    """

    guard: Guard
    batch: Batch | Sequence[Any]
    step_size: float | None
    ids: Sequence[object] | None = None

    def __post_init__(self) -> None:
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise SettingsError(f"expected step_size above 0, or None to send gradients, found {self.step_size}")


@dataclass(frozen=True, eq=False)
class Reviewed:
    """A decision in the framework's form.

    Attributes:
        decision: the guard's.
        arrays: what may be sent, with the outgoing names, shapes and dtypes; None when withheld.
    """

    decision: Decision
    arrays: dict[str, Array] | None


def review(
    step: LocalStep,
    received: Mapping[str, Array],
    outgoing: Mapping[str, Array],
    *,
    difference: bool = False,
    round: int | None = None,
) -> Reviewed:
    """Let the guard decide about arrays that are about to leave.

    Args:
        step: handed over by the training function.
        received: the server's model: all entries of the state dict, by name or in its order.
        outgoing: like ``received``; gradients of the trainable parameters only, where there is no step_size.
        difference: whether ``outgoing`` is the difference from ``received``.
        round: number for the log.

    Raises:
        GuardError: arrays that aren't the model's, or that hold more than the trainable parameters' step.
    """
    model, size = step.guard.model, step.step_size
    kind: Kind = "gradient" if size is None else "difference" if difference else "weights"
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    came = _named(received, list(model.state_dict()), "received")
    goes = _named(outgoing, trainable if kind == "gradient" else list(model.state_dict()), "outgoing")
    _only_trainable(goes, came, trainable, kind)
    scale = 1.0 if size is None else size
    update = {name: torch.from_numpy(_gradient(goes[name], came[name], kind, scale)) for name in trainable}
    with _weights(model, came):
        decision = step.guard.review(step.batch, update, ids=step.ids, round=round, local_steps=1)
        decision = step.guard.confirm(decision)
    if decision.update is None:
        return Reviewed(decision, None)
    sent = {name: np.array(value) for name, value in goes.items()}
    if decision.action == "sanitise":
        for name, changed in decision.update.items():
            sent[name] = _outgoing(changed.numpy(), came[name], kind, scale).astype(goes[name].dtype)
    if set(outgoing) != set(goes):  # numbered, in the model's order
        return Reviewed(decision, dict(zip(outgoing, sent.values(), strict=True)))
    return Reviewed(decision, sent)


def _named(arrays: Mapping[str, Array], names: list[str], which: str) -> dict[str, Array]:
    """The arrays by the model's names and in its order, which tells nothing; numbered ones have that order.

    Raises:
        GuardError: names or a count that don't fit.
    """
    if set(arrays) != set(names):
        if list(arrays) != [str(number) for number in range(len(names))]:
            raise GuardError(
                f"expected {which} arrays named like the model's {len(names)}, found {len(arrays)} with other names"
            )
        return dict(zip(names, arrays.values(), strict=True))
    return {name: arrays[name] for name in names}


def _only_trainable(goes: dict[str, Array], came: dict[str, Array], trainable: list[str], kind: Kind) -> None:
    """Nothing but the trainable parameters may have changed: running statistics are made of the batch, too.

    Raises:
        GuardError: something else has, or shapes or dtypes differ.
    """
    for name, value in goes.items():
        if value.shape != came[name].shape:
            raise GuardError(f"expected an outgoing {name} of shape {came[name].shape}, found {value.shape}")
        if value.dtype != came[name].dtype:
            raise GuardError(
                f"expected an outgoing {name} of dtype {came[name].dtype}, as it was received, found {value.dtype}; "
                "entries of another size hold more than the weights need"
            )
        if name in trainable:
            continue
        unchanged = np.zeros_like(came[name]) if kind == "difference" else came[name]
        if not np.array_equal(value, unchanged):
            raise GuardError(
                f"the outgoing {name} isn't trainable, yet it differs from what was received, and nobody reviews it; "
                "send it back as it came"
            )


def _gradient(goes: Array, came: Array, kind: Kind, scale: float) -> Array:
    """The gradient that an outgoing array stands for, float64."""
    if kind == "gradient":
        return goes.astype(np.float64)
    if kind == "difference":
        return -goes.astype(np.float64) / scale
    return (came.astype(np.float64) - goes.astype(np.float64)) / scale


def _outgoing(gradient: Array, came: Array, kind: Kind, scale: float) -> Array:
    """The inverse of `_gradient`, float64."""
    if kind == "gradient":
        return gradient
    return -scale * gradient if kind == "difference" else came.astype(np.float64) - scale * gradient


@contextmanager
def _weights(model: nn.Module, arrays: dict[str, Array]) -> Iterator[None]:
    """The model with the weights that the server sent, for as long as the review takes.

    Raises:
        GuardError: shapes that differ from the model's.
    """
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for name, value in before.items():
        if tuple(value.shape) != arrays[name].shape:
            raise GuardError(f"expected a received {name} of shape {tuple(value.shape)}, found {arrays[name].shape}")
    try:
        model.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
        yield
    finally:
        model.load_state_dict(before)
