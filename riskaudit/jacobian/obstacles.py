"""What in a model keeps its gradient from being differentiated, in words."""

from __future__ import annotations

import re

from riskaudit.release import is_random


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
    missing = re.search(
        r"derivative for (\S+) is not implemented|Batching rule not implemented for (\S+?)[.,;\s]", text
    )
    if missing is None:
        return None
    return (
        "an audit differentiates the gradient of every sample, and PyTorch has no second derivative of the model's "
        f"operation {missing.group(1) or missing.group(2)}; use another layer there (--arch file.py:factory)"
    )
