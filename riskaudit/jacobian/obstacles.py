"""What in a model keeps its gradient from being differentiated, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch

from riskaudit.release import Batch, Release, is_random
from riskaudit.release.interception import Interception

NOT_DETERMINISTIC = (
    "two passes of the model at the same sample differ although it is in eval mode, so its gradient is not a function "
    "of the sample: its forward draws random numbers, reads the time or counts its calls; make it deterministic in "
    "eval mode (dropout as a layer, noise only if self.training)"
)
AUTOCAST = (
    "the model computes in low precision (torch.autocast in its forward), whose rounding changes with the size of a "
    "batch, so a batch's loss isn't made of its samples' losses; leave torch.autocast out of the forward"
)
_PRECISIONS = re.compile(
    r"(must|to) have the same dtype|should be the same|expected scalar type \S+ but found|"
    r"expected .*\bdtype\b.* but (got|found)",
    re.IGNORECASE,
)


def obstacle_of(error: BaseException) -> str | None:
    """What in the model keeps the gradient from being differentiated, if that is the error."""
    text = str(error)
    if is_random(error):
        return "the model draws random numbers in eval mode, so its gradient is not a function of the sample"
    if "use_reentrant" in text:
        return (
            "torch.utils.checkpoint with use_reentrant=True gives no second derivatives, and an audit differentiates "
            "the gradient of every sample; call it with use_reentrant=False, which computes the same"
        )
    if "once_differentiable" in text:
        return (
            "the backward of an autograd.Function in the model is marked once_differentiable, and an audit "
            "differentiates the gradient of every sample; write that backward in differentiable operations"
        )
    if isinstance(error, RuntimeError) and _PRECISIONS.search(text):
        return (
            "a tensor in the model doesn't have the precision that its weights are audited in: its forward converts to "
            "one of its own (.float(), .half()) or makes a tensor of one; write .to(x.dtype) there, or audit in the "
            "model's own precision (`dtype=float32`)"
        )
    missing = re.search(
        r"derivative for (\S+) is not implemented|Batching rule not implemented for (\S+?)[.,;\s]", text
    )
    if missing is None:
        return None
    return (
        "an audit differentiates the gradient of every sample, and PyTorch has no second derivative of the model's "
        f"operation {missing.group(1) or missing.group(2)}; use another layer there (`arch=file.py:factory`)"
    )


class _AutocastWatch(Interception):
    """Within this context, operations under ``torch.autocast`` are noticed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.seen = device, False

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """See `Interception.call`."""
        self.seen |= torch.is_autocast_enabled(self.device.type)
        return function(*args, **kwargs)


@torch.no_grad()
def uses_autocast(release: Release, batch: Batch) -> bool:
    """Whether some operation of the model or the loss runs under ``torch.autocast``."""
    watch = _AutocastWatch(release.device)
    with suppress(Exception), watch:  # third-party code may raise anything, and shows elsewhere what is wrong with it
        release.function.plain_loss(batch.inputs[0], batch.targets[0])
    return watch.seen
