"""Priors that the data contradict: what an attacker is taken to know must allow for what is there.

A prior far tighter than the data makes everything known already, and nothing left to reveal. Under N(mu, C) the
squared Mahalanobis distance (x - mu)^T C^-1 (x - mu) / d of an input has mean 1. Real images under priors fitted to
others come to 0.6 to 2.4 on average and up to 8 (MNIST, CIFAR-10), far from the chi-square law, so the limits are wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riskaudit.errors import PriorError
from riskaudit.priors.base import Prior

# Mean squared deviations, in the prior's own standard deviations, of half the samples of a batch: four of them.
MOST_OF_MEDIAN = 16.0
# From here on the prior is tighter than the data look, and that is said; of images under fitted priors medians are 0.8
# to 2.3.
TIGHT_MEDIAN = 3.0
# Of any sample, whatever the others are like: 220 of them, as of inputs 100 times too large.
# Below, a sample is odd rather than the prior wrong, and is named.
MOST_OF_ONE = 5e4


@torch.no_grad()
def squared_deviations(prior: Prior, inputs: Tensor, targets: Tensor, *, about_own_mean: bool = False) -> Tensor:
    """(x - mu)^T C^-1 (x - mu) / d of every input [B, *S], [B], float64; 1 on average under the prior.

    ``about_own_mean`` leaves out the mean of all entries of x - mu: one number off everywhere is a wrong mean.
    """
    flat = inputs.detach().flatten(1).double()
    bound = prior.bind(targets, flat)
    away = flat - bound.mean
    return bound.inverse_root(away - away.mean() if about_own_mean else away).square().mean(1)


def odd_samples(prior: Prior, inputs: Tensor, targets: Tensor, advice: str) -> list[int]:
    """Hold a prior against data, [B, *S] in data units; ``advice`` ends the message: what to do.

    Returns:
        Positions of samples that the prior makes next to impossible, while it allows for most.

    Raises:
        PriorError: half of the samples, or one of them by far, lie outside what the prior allows.
    """
    deviations = squared_deviations(prior, inputs, targets)
    median, most = float(deviations.median()), float(deviations.max())
    # NaN must fail the check.
    if not (median <= MOST_OF_MEDIAN and most <= MOST_OF_ONE):
        far = (median if median > MOST_OF_MEDIAN else most) ** 0.5
        raise PriorError(
            f"the data contradict the prior: their coordinates lie {far:.3g} of its standard deviations from its mean "
            f"(root mean square), where about 1 is expected; under it everything would seem known already; {advice}"
        )
    return [index for index, value in enumerate(deviations.tolist()) if value > MOST_OF_MEDIAN]


def tight_note(prior: Prior, inputs: Tensor, targets: Tensor) -> list[str]:
    """That the prior is much tighter than the data, which makes less of them seem revealed; for a result."""
    # A wrong mean changes nothing that is revealed.
    median = float(squared_deviations(prior, inputs, targets, about_own_mean=True).median())
    if not median > TIGHT_MEDIAN:
        return []
    return [
        f"the prior looks too tight: the data's coordinates lie {median**0.5:.2g} of its standard deviations from "
        "their mean, where about 1 is expected, so that less seems revealed than is; give the prior of data like these"
    ]


def odd_note(ids: Sequence[str], positions: Sequence[int]) -> list[str]:
    """A warning that names odd samples, for a result."""
    if not positions:
        return []
    named = ", ".join(ids[position] for position in positions[:5]) + (" and others" if len(positions) > 5 else "")
    return [
        f"the prior makes {len(positions)} of {len(ids)} samples next to impossible ({named}): what it says of them is "
        "doubtful, and less than an attacker might learn"
    ]
