"""What part of a batch's loss each sample has: the loss of a batch isn't always the mean of its samples' losses.

Class weights, ignored targets and sums give L(batch) = sum_i c_i l_i with c_i that don't depend on the inputs. Then
dL/do_i = c_i dl_i/do_i for every sample's output o_i, which shows the c_i, at the batch's own outputs and at others.
Losses in a batch that compare samples with each other, or pick some of them, have no such c_i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from typing_extensions import override

from riskaudit.errors import ReleaseError
from riskaudit.release.interception import Interception
from riskaudit.release.model import LossFunction

# Shares that agree to so many digits, at different outputs, are constants.
TOLERANCE = 1e-3
# Gradients below this part of the batch's largest say nothing of a share.
NEGLIGIBLE = 1e-5


def batch_loss(loss: LossFunction, outputs: Tensor, targets: Tensor, added: Tensor | None = None) -> Tensor:
    """The loss of a batch as training computes it, a scalar; the mean over the samples of a loss without reduction.

    Args:
        loss: of outputs [B, ...] and targets [B, ...].
        outputs: of the model.
        targets: of the samples.
        added: to every sample's loss by layers, [B], of which training adds the mean; None for nothing.
    """
    value = loss(outputs, targets)
    value = value.reshape(()) if value.numel() == 1 else value.sum() / len(outputs)
    return value if added is None else value + added.mean()


def sample_losses(loss: LossFunction, outputs: Tensor, targets: Tensor, added: Tensor | None = None) -> Tensor:
    """The loss of every sample in a batch of its own, [B].

    Args:
        loss: of outputs [B, ...] and targets [B, ...].
        outputs: of the model.
        targets: of the samples.
        added: to every sample's loss by layers, [B]; None for nothing.

    Raises:
        ReleaseError: the loss can't be computed for one sample.
    """
    try:
        losses: Tensor = vmap(lambda output, target: loss(output[None], target[None]).sum())(outputs, targets)
    except Exception:  # what vmap can't run (`.item()`, selections by values) may run sample by sample
        pairs = [(outputs[index : index + 1], targets[index : index + 1]) for index in range(len(outputs))]
        try:
            losses = torch.stack([loss(*pair).sum() for pair in pairs])
        except Exception as error:
            raise ReleaseError(_failure_alone(loss, outputs, targets, error)) from error
    return losses if added is None else losses + added


class BareSqueezes(Interception):
    """Within this context, calls of ``squeeze`` without an axis at batches of one sample are noticed.

    Attributes:
        dropped: whether one of them has dropped the batch's axis.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dropped = False

    @override
    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if function in (torch.squeeze, Tensor.squeeze) and len(args) == 1 and not kwargs and args[0].ndim:
            self.dropped |= len(args[0]) == 1
        return function(*args, **kwargs)


def _failure_alone(loss: LossFunction, outputs: Tensor, targets: Tensor, error: Exception) -> str:
    """Why the loss can't be computed for one sample, in words that hold no values."""
    kind = type(error).__name__
    squeezes = BareSqueezes()
    with suppress(Exception), squeezes:  # what fails is known
        loss(outputs[:1], targets[:1])
    if squeezes.dropped:
        return (
            f"the loss can't be computed for one sample by itself ({kind}): it calls squeeze(), which drops the axis "
            "of a batch of one sample as well; write squeeze(-1) there"
        )
    try:
        loss(outputs, targets)
    except Exception as together:  # the loss may be third-party code, which may raise anything
        return (
            f"the loss can't be computed for this batch ({type(together).__name__}), whose outputs have the shape "
            f"{list(outputs.shape)} and targets the shape {list(targets.shape)} in {targets.dtype}; hand over the "
            "targets as training gives them to the loss"
        )
    return (
        f"the loss can't be computed for one sample by itself ({kind}), so no sample's part of a batch's gradient is "
        "known; losses that pick or compare samples (hard examples, pairs, contrastive) can't be reviewed: train with "
        "a (weighted) mean over the samples"
    )


def shares_of(loss: LossFunction, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """c_i of every sample of a batch.

    Args:
        loss: of outputs [B, ...] and targets [B, ...].
        outputs: of the model.
        targets: of the samples.

    Returns:
        The shares [B], float64 on the CPU, 0 for a sample that the loss leaves out; None where there are none: the
        loss of a batch isn't a sum of its samples' losses with constant factors.
    """
    count = len(outputs)
    if count == 1:
        return torch.ones(1, dtype=torch.float64)
    outputs = outputs.detach()
    # Mixtures of outputs stay what outputs have to be, such as probabilities.
    points = [outputs, (outputs + outputs.roll(1, 0)) / 2, 0.3 * outputs + 0.7 * outputs.roll(count // 2, 0)]
    pairs = [_derivatives(loss, point, targets) for point in points]
    shares, is_known = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.bool)
    for together, alone in pairs:
        telling = alone.norm(dim=1) > NEGLIGIBLE * alone.norm(dim=1).nan_to_num().max()
        new = telling & ~is_known
        shares[new] = ((together * alone).sum(1) / alone.square().sum(1))[new]
        is_known |= telling
    for together, alone in pairs:
        # A sample that the loss leaves out has no loss of its own.
        expected = torch.where(is_known[:, None], shares[:, None] * alone, torch.zeros_like(alone)).nan_to_num()
        size = together.norm(dim=1)
        if not bool(((together - expected).norm(dim=1) <= TOLERANCE * size + NEGLIGIBLE * size.max()).all()):
            return None
    return shares


def _derivatives(loss: LossFunction, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives w.r.t. the outputs, each [B, D] in float64 on the CPU: of the batch's loss, of every sample's own."""
    with torch.enable_grad():
        point = outputs.clone().requires_grad_()
        values = batch_loss(loss, point, targets), sample_losses(loss, point, targets).sum()
        gradients = [torch.autograd.grad(value, point, allow_unused=True)[0] for value in values]
    flat = [torch.zeros_like(outputs) if gradient is None else gradient for gradient in gradients]
    # Outputs may be one number per sample, [B].
    together, alone = (gradient.reshape(len(gradient), -1).double().cpu() for gradient in flat)
    return together, alone
