"""What frameworks exchange, as the guard sees it: weights came, one local step was taken, weights go back.

    weights:     gradient = (received - outgoing) / step_size
    difference:  gradient = -outgoing / step_size
    gradient:    gradient = outgoing

Float32 weights w carry an error of about 6e-8 |w|, hence the gradient one of 6e-8 |w| / step_size. Where that is more
than the guard allows between an update and the batch's own gradient (guard.base_client.TOLERANCE, or the noise), the
update is withheld; send gradients then. Several local steps, momentum and weight decay aren't one gradient of one
batch, and are withheld for the same reason where no noise hides them. Under noise it can't be seen: whoever makes a
`LocalStep` says that there was one. Whole rounds of local training are reviewed by their recordings (`review_round`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from riskaudit.errors import GuardError, SettingsError
from riskaudit.guard import Decision, Guard, Recording
from riskaudit.release import Batch

Array: TypeAlias = npt.NDArray[Any]


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


def inspect(guard: Guard, received: Mapping[str, Array], inputs: torch.Tensor) -> Decision:
    """Whether anything may be trained on weights that came; to be asked before.

    Args:
        guard: of the model; its weights stay as they are.
        received: the server's model: all entries of the state dict, by name or in its order.
        inputs: [N, ...] in data units, of the client.

    Returns:
        "allow", or "block" with one sentence. Nothing is raised: what goes wrong blocks.
    """
    try:
        weights = _named(received, list(guard.model.state_dict()), "received")
    except GuardError as error:
        return guard.withhold(str(error))
    return guard.inspect(inputs, weights)


def review(
    step: LocalStep,
    received: Mapping[str, Array],
    outgoing: Mapping[str, Array],
    *,
    difference: bool = False,
    round: int | None = None,
) -> Decision:
    """Let the guard decide about arrays that are about to leave.

    Args:
        step: handed over by the training function.
        received: the server's model: all entries of the state dict, by name or in its order.
        outgoing: like ``received``; gradients of the trainable parameters only, where there is no step_size.
        difference: whether ``outgoing`` is the difference from ``received``.
        round: number for the log.

    Returns:
        The guard's decision, whose update are arrays with the outgoing names, shapes and dtypes.

    Raises:
        GuardError: arrays that aren't the model's, or that hold more than the trainable parameters' step.
    """
    model, size = step.guard.model, step.step_size
    entries = list(model.state_dict())
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    weights = _named(received, entries, "received")
    sent = _named(outgoing, trainable if size is None else entries, "outgoing")
    # What the outgoing arrays are differences from, where they are any.
    origin = {name: np.zeros_like(weights[name]) if difference else weights[name] for name in sent}
    changed = _only_trainable(sent, origin, trainable, step.guard.policy.resets_buffers)
    update = {name: torch.from_numpy(_gradient(sent[name], origin[name], size)) for name in trainable}
    with _weights(model, weights):
        decision = step.guard.review(step.batch, update, ids=step.ids, round=round, local_steps=1)
        decision = step.guard.confirm(decision)
    if decision.update is None:
        return decision
    sent = {name: np.array(origin[name] if name in changed else value) for name, value in sent.items()}
    if decision.action == "sanitise":
        for name, reviewed in decision.update.items():
            gradient = reviewed.numpy()
            exact = gradient if size is None else origin[name].astype(np.float64) - size * gradient
            sent[name] = exact.astype(sent[name].dtype)
    return replace(decision.with_reset(changed), update=_as_outgoing(sent, outgoing))


def review_round(
    recording: Recording,
    received: Mapping[str, Array],
    outgoing: Mapping[str, Array],
    *,
    difference: bool = False,
    round: int | None = None,
) -> Decision:
    """Let the guard decide about what a recorded round of local training has made.

    Args:
        recording: of the training, which began at the received weights.
        received: the server's model: all entries of the state dict, by name or in its order.
        outgoing: like ``received``, or the trainable parameters only, by name.
        difference: whether ``outgoing`` is the difference from ``received``.
        round: number for the log.

    Returns:
        The guard's decision, whose update are arrays with the outgoing names, shapes and dtypes; entries that aren't
        trained are as they were received.

    Raises:
        GuardError: arrays that aren't the model's, or a training that began at others than those received.
    """
    model, entries = recording.guard.model, list(recording.start)
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    weights = _named(received, entries, "received")
    for name, value in recording.start.items():
        if not np.array_equal(weights[name], value.cpu().numpy()):
            raise GuardError(
                f"the recording didn't begin at the weights that were received ({name} differs); load them into the "
                "model before guard.record"
            )
    sent = _named(outgoing, trainable if set(outgoing) == set(trainable) else entries, "outgoing")
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in sent.items()}
    decision = recording.review(tensors, difference=difference, round=round)
    decision = recording.guard.confirm(decision)
    if decision.update is None:
        return decision
    leaving = {name: value.cpu().numpy() for name, value in decision.update.items()}
    return replace(decision, update=_as_outgoing({name: leaving[name] for name in sent}, outgoing))


def _as_outgoing(sent: Mapping[str, Array], outgoing: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays by the model's names and in its order under the names that they left with; numbered ones keep numbers."""
    return dict(sent) if set(outgoing) == set(sent) else dict(zip(outgoing, sent.values(), strict=True))


def _gradient(sent: Array, origin: Array, step_size: float | None) -> Array:
    """The gradient that an outgoing array stands for, float64."""
    if step_size is None:
        return sent.astype(np.float64)
    return (origin.astype(np.float64) - sent.astype(np.float64)) / step_size


def _named(arrays: Mapping[str, Array], names: list[str], which: str) -> dict[str, Array]:
    """The arrays by the model's names and in its order, which tells nothing; numbered ones have that order."""
    if set(arrays) != set(names):
        if list(arrays) != [str(number) for number in range(len(names))]:
            raise GuardError(
                f"expected {which} arrays named like the model's {len(names)}, found {len(arrays)} with other names"
            )
        return dict(zip(names, arrays.values(), strict=True))
    return {name: arrays[name] for name in names}


def _only_trainable(
    sent: Mapping[str, Array], origin: Mapping[str, Array], trainable: list[str], resets: bool
) -> list[str]:
    """The other entries that have changed: running statistics are made of the batch, too.

    Raises:
        GuardError: other shapes or dtypes than those received, or changed entries where none may be put back.
    """
    changed = []
    for name, value in sent.items():
        if value.shape != origin[name].shape:
            raise GuardError(f"expected an outgoing {name} of shape {origin[name].shape}, found {value.shape}")
        if value.dtype != origin[name].dtype:
            raise GuardError(
                f"expected an outgoing {name} of dtype {origin[name].dtype}, as it was received, found {value.dtype}; "
                "entries of another size hold more than the weights need"
            )
        if name not in trainable and not np.array_equal(value, origin[name]):
            changed.append(name)
    if changed and not resets:
        raise GuardError(
            f"the outgoing {changed[0]} isn't trainable, yet it differs from what was received, and nobody reviews it; "
            'send it back as it came, or set buffers = "reset" in the policy'
        )
    return changed


@contextmanager
def _weights(model: nn.Module, arrays: dict[str, Array]) -> Iterator[None]:
    """The model with the weights that the server sent, for as long as the review takes."""
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for name, value in before.items():
        if tuple(value.shape) != arrays[name].shape:
            raise GuardError(f"expected a received {name} of shape {tuple(value.shape)}, found {arrays[name].shape}")
    try:
        model.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
        yield
    finally:
        model.load_state_dict(before)
