"""Changing an update until it keeps a policy: the least noise, or fewer samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from riskaudit.guard.assessment import Assessment
from riskaudit.guard.ledger import Account
from riskaudit.policy import Exposure, Policy, Range

# Noise is found to this relative precision.
NOISE_PRECISION = 1e-4
# Noise this many times what is needed for one sample is out of reach.
SEARCH_DECADES = 12
# The noise found may be larger than the smallest by this share: the last few samples aren't worth their time.
EXCESS = 0.04
# By how much noise grows at a time until classes are near enough to each other.
GAP_GROWTH = 1.05
GAP_STEPS = 400


class Refiner(Protocol):
    """Makes intervals of a batch narrower, if time allows."""

    def narrow(self, places: list[int]) -> bool:
        """A further look at some samples together, with more products than the last; False where there is none."""

    def refine(self, place: int, noise_std: float) -> None:
        """One sample as exactly as is affordable, around this noise."""


def least_noise(
    found: Assessment, policy: Policy, noise_std: float, accounts: dict[str, Account] | None, refiner: Refiner
) -> float | None:
    """The smallest std of Gaussian noise on the update with which every sample is sure to keep the limits.

    Only the samples that may decide are looked at further: those that might need more noise than some other is sure
    to need, together and cheaply first, then one by one from the most needy on, until nobody who is left might need
    much more than the most that a refined sample needs.

    Args:
        found: of the batch.
        policy: the limits.
        noise_std: Fisher-equivalent std that is there already; the result isn't smaller.
        accounts: of a ledger, or None.
        refiner: of the same batch.

    Returns:
        The std of all noise together; None where no noise is sure to do, or a sample was not assessed.
    """
    places, needed = range(len(found.ids)), dict[int, float]()
    for place in places:
        known = place in found.information
        std = _needed(found, policy, place, accounts, cautious=True) if known else None
        if std is None:
            return None
        needed[place] = std

    def again(place: int) -> None:
        # All intervals of one number hold at the same time, so the tighter end counts.
        std = _needed(found, policy, place, accounts, cautious=True)
        needed[place] = min(needed[place], math.inf if std is None else std)

    while max(needed.values()) > noise_std:
        sure = [_needed(found, policy, place, accounts, cautious=False) or 0.0 for place in places]
        candidates = [place for place in places if needed[place] > max(noise_std, *sure)]
        if not candidates or not refiner.narrow(candidates):
            break
        for place in candidates:
            again(place)
    refined: set[int] = set()
    while True:
        worst = max(needed, key=lambda place: needed[place])
        sure_of = max((needed[place] for place in refined), default=0.0)
        if worst in refined or needed[worst] <= max(noise_std, (1 + EXCESS) * sure_of):
            break
        refiner.refine(worst, needed[worst])
        again(worst)
        refined.add(worst)
    return _until_classes_agree(found, policy, max(noise_std, needed[worst]), accounts)


def drop_exposed(
    found: Assessment, policy: Policy, noise_std: float, accounts: dict[str, Account] | None
) -> list[int] | None:
    """Places of the samples whose mean may leave, with noise of this std; None where too few are left.

    The fewer samples share the noise, the more each one reveals, so that dropping one may expose another.
    """
    if found.shares is not None:
        # The share of every sample changes with those that are left out.
        return None
    kept = list(range(len(found.ids)))
    while kept:
        exposures = [found.exposure(place, noise_std, len(kept), accounts) for place in kept]
        judgement = policy.judge(exposures)
        bad = {*judgement.exceeded, *judgement.unassessed}
        if not bad:
            return None if judgement.reasons else kept
        out = {place for place, one in zip(kept, exposures, strict=True) if one.id in bad}
        # Nobody leaves in part: twins share the noise by their number.
        kept = [place for place in kept if not out.intersection(found.twins(place))]
    return None


def _needed(
    found: Assessment, policy: Policy, place: int, accounts: dict[str, Account] | None, *, cautious: bool
) -> float | None:
    """Least std on the update for one sample; None where none is sure to do.

    What a release reveals falls with the noise, and so does each of its ends.

    Args:
        found: of the batch.
        policy: the limits.
        place: of the sample.
        accounts: of a ledger, or None.
        cautious: the std that is sure to do, rather than the one below which none can.
    """
    batch_size, information = len(found.ids), found.information[place]
    _, largest = information.scale
    if not math.isfinite(largest):
        return None
    if largest <= 0:
        return 0.0

    def kept(log_std: float) -> bool:
        one = found.exposure(place, math.exp(log_std), batch_size, accounts)
        if one.revealed is None:
            # What isn't believed at this noise may be over any limit.
            return False
        return not any(policy.exceeds(limit, one if cautious else _hopeful(one)) for limit in policy.limits)

    middle = math.log(information.tau * math.sqrt(largest) / found.sample_noise(1.0, batch_size, place))
    low, high = middle - SEARCH_DECADES * math.log(10), middle + SEARCH_DECADES * math.log(10)
    if not kept(high):
        return None
    if kept(low):
        return 0.0
    return math.exp(_bisected(kept, low, high))


def _hopeful(one: Exposure) -> Exposure:
    """With the ends of the intervals that ask for the least noise."""
    revealed = None if one.revealed is None else Range(one.revealed.low, one.revealed.low)
    rmse = None if one.rmse is None else Range(one.rmse.high, one.rmse.high)
    total = None if one.total_revealed is None else Range(one.total_revealed.low, one.total_revealed.low)
    return Exposure(one.id, one.group, revealed, rmse, total)


def _bisected(kept: Callable[[float], bool], low: float, high: float) -> float:
    """The least x at which ``kept`` holds, from a side where it does."""
    while high - low > NOISE_PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return high


def _until_classes_agree(
    found: Assessment, policy: Policy, noise_std: float, accounts: dict[str, Account] | None
) -> float | None:
    """The noise with which the whole batch keeps the policy, the gap between classes included."""
    for _ in range(GAP_STEPS):
        exposures: list[Exposure] = found.exposures(noise_std, accounts)
        if not policy.judge(exposures).reasons:
            return noise_std
        noise_std *= GAP_GROWTH
    return None
