"""Changing an update until it keeps a policy: the least noise, or fewer samples."""

from __future__ import annotations

import math
from typing import Protocol

from riskaudit.guard.information import BatchInformation
from riskaudit.policy import Exposure, Policy, Range

# Noise is worked out to this relative precision.
NOISE_PRECISION = 1e-4
# Noise this many times what is needed for one sample is out of reach.
SEARCH_DECADES = 12
# The noise may be larger than the smallest by this share: the last few samples aren't worth their time.
EXCESS = 0.04
# By how much noise grows at a time until classes are near enough to each other.
GAP_GROWTH = 1.05
GAP_STEPS = 400


class Looks(Protocol):
    """Who can look at samples of a batch once more."""

    def narrow(self, information: BatchInformation, indices: list[int]) -> bool:
        """A further look at some samples; False where there is none, or no time."""

    def refine(self, information: BatchInformation, index: int, noise_std: float) -> None:
        """A closer look at one sample, aimed at this noise, where that is affordable."""


def least_noise(information: BatchInformation, policy: Policy, noise_std: float, estimator: Looks) -> float | None:
    """The smallest std of Gaussian noise on the update with which every sample is sure to keep the limits.

    Only the samples that may decide are looked at further: those that might need more noise than some other is sure
    to need, together and cheaply first, then one by one from the most needy on, until nobody who is left might need
    much more than the most that a refined sample needs.

    Returns:
        The std of all noise together, not below the Fisher-equivalent std that is there already; None where no noise is
        sure to do, or a sample was not assessed.
    """
    indices, needed = range(len(information)), dict[int, float]()
    for index in indices:
        std = _needed_noise(information, policy, index, cautious=True)
        if std is None:
            return None
        needed[index] = std

    def update(index: int) -> None:
        # All intervals of one number hold at the same time, so the tighter end counts.
        std = _needed_noise(information, policy, index, cautious=True)
        needed[index] = min(needed[index], math.inf if std is None else std)

    while max(needed.values()) > noise_std:
        sure = [_needed_noise(information, policy, index, cautious=False) or 0.0 for index in indices]
        candidates = [index for index in indices if needed[index] > max(noise_std, *sure)]
        if not candidates or not estimator.narrow(information, candidates):
            break
        for index in candidates:
            update(index)
    refined: set[int] = set()
    while True:
        worst = max(needed, key=lambda index: needed[index])
        most_refined = max((needed[index] for index in refined), default=0.0)
        if worst in refined or needed[worst] <= max(noise_std, (1 + EXCESS) * most_refined):
            break
        estimator.refine(information, worst, needed[worst])
        update(worst)
        refined.add(worst)
    std = max(noise_std, needed[worst])
    for _ in range(GAP_STEPS):
        # The whole batch, the gap between classes included.
        if not policy.judge(information.exposures(std)).reasons:
            return std
        std *= GAP_GROWTH
    return None


def drop_exposed(information: BatchInformation, policy: Policy, noise_std: float) -> list[int] | None:
    """Indices of the samples whose mean may leave, with noise of this std; None where too few are left.

    The fewer samples share the noise, the more each one reveals, so that dropping one may expose another.
    """
    if any(sample.share is not None for sample in information.samples):
        # The share of every sample changes with those that are left out.
        return None
    remaining = list(range(len(information)))
    while remaining:
        exposures = [information.exposure(index, noise_std, len(remaining)) for index in remaining]
        judgement = policy.judge(exposures)
        refused = {*judgement.exceeded, *judgement.unassessed}
        if not refused:
            return None if judgement.reasons else remaining
        dropped = {index for index, exposure in zip(remaining, exposures, strict=True) if exposure.id in refused}
        # Nobody leaves in part: twins share the noise by their number.
        remaining = [index for index in remaining if not dropped.intersection(information.twins(index))]
    return None


def _needed_noise(information: BatchInformation, policy: Policy, index: int, *, cautious: bool) -> float | None:
    """Least std on the update for one sample; None where none is sure to do, or it was not assessed.

    What a release reveals falls with the noise, and so does each of its ends. ``cautious`` asks for the std that is
    sure to do, rather than for the one below which none can.
    """
    batch_size, sample = len(information), information.samples[index].information
    if sample is None:
        return None
    _, largest = sample.scale
    if not math.isfinite(largest):
        return None
    if largest <= 0:
        return 0.0

    def is_within(log_std: float) -> bool:
        exposure = information.exposure(index, math.exp(log_std), batch_size)
        if exposure.revealed is None:
            # What isn't believed at this noise may be over any limit.
            return False
        exposure = exposure if cautious else _optimistic(exposure)
        return not any(policy.exceeds(limit, exposure) for limit in policy.limits)

    middle = math.log(sample.tau * math.sqrt(largest) / information.sample_noise(1.0, batch_size, index))
    low, high = middle - SEARCH_DECADES * math.log(10), middle + SEARCH_DECADES * math.log(10)
    if not is_within(high):
        return None
    if is_within(low):
        return 0.0
    while high - low > NOISE_PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if is_within(middle) else (middle, high)
    return math.exp(high)


def _optimistic(exposure: Exposure) -> Exposure:
    """An exposure with the ends of the intervals that ask for the least noise."""
    revealed, rmse, total = exposure.revealed, exposure.rmse, exposure.total_revealed
    return Exposure(
        exposure.id,
        exposure.group,
        None if revealed is None else Range(revealed.low, revealed.low),
        None if rmse is None else Range(rmse.high, rmse.high),
        None if total is None else Range(total.low, total.low),
    )
