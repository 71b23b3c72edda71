"""Passes of a model in a review: what they run under, and that their outputs are those of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from riskaudit.errors import GuardError
from riskaudit.jacobian.choice import is_repeatable
from riskaudit.jacobian.obstacles import AUTOCAST, NOT_DETERMINISTIC, uses_autocast
from riskaudit.release import Batch, Release

COUPLED = (
    "the loss of a sample depends on the other samples of its batch, so a batch's gradient isn't made of its samples'; "
    "train without operations over the whole batch"
)


def outputs_of(release: Release, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Of the model for a batch.

    Raises:
        GuardError: they are no tensor.
    """
    outputs: object = release.run(parameters, batch.inputs)
    if isinstance(outputs, Tensor):
        return outputs
    raise GuardError(
        f"the model returns a {type(outputs).__name__}, and a review takes models that return one tensor; give guard "
        "and training a module around it whose forward returns the tensor that the loss takes, such as its logits"
    )


@torch.no_grad()
def refuse_dropped_axis(release: Release, batch: Batch, outputs: Tensor) -> None:
    """Refuse a model whose outputs for one sample have no axis of the batch.

    Raises:
        GuardError: that is so.
    """
    if not outputs.ndim or len(outputs) != len(batch) or len(batch) == 1:
        return
    try:
        shape = release.run(release.parameters, batch.inputs[:1]).shape
    except Exception:  # it shows again where the loss of one sample is computed
        return
    if shape == outputs.shape[1:]:
        raise GuardError(
            f"the model's outputs have the shape {list(outputs.shape)} for {len(batch)} samples and {list(shape)} for "
            "one, since squeeze() without an axis drops the axis of the batch as well; write squeeze(-1) in the forward"
        )


def coupling_of(release: Release, batch: Batch) -> str:
    """Why a sample has another loss in its batch than alone."""
    if not is_repeatable(release, batch):
        return NOT_DETERMINISTIC
    return AUTOCAST if uses_autocast(release, batch) else COUPLED


@contextmanager
def own_modes() -> Iterator[None]:
    """Without inference mode and autocast, whatever is on where a review is called: it differentiates, precisely."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
