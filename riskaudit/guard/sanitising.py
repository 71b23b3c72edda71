"""Changing an update until it keeps a policy: the least noise, or fewer samples."""

from __future__ import annotations

import math
from collections.abc import Callable

from riskaudit.guard.assessment import Assessment
from riskaudit.guard.ledger import Account
from riskaudit.policy import Exposure, Policy

# Noise is found to this relative precision.
NOISE_PRECISION = 1e-4
# Noise this many times what is needed for one sample is out of reach.
SEARCH_DECADES = 12
# By how much noise grows at a time until classes are near enough to each other.
GAP_GROWTH = 1.05
GAP_STEPS = 400

Refine = Callable[[int, float], None]


def least_noise(
    found: Assessment, policy: Policy, noise_std: float, accounts: dict[str, Account] | None, refine: Refine
) -> float | None:
    """The smallest std of Gaussian noise on the update with which every sample is sure to keep the limits.

    Only the samples that decide are refined: the one that seems to need the most noise first, and so on until none is
    left that might need more than the most that a refined one needs.

    Args:
        found: of the batch.
        policy: the limits.
        noise_std: Fisher-equivalent std that is there already; the result isn't smaller.
        accounts: of a ledger, or None.
        refine: refine(place, noise_std) makes a sample's numbers tighter around this noise, if time allows.

    Returns:
        The std of all noise together; None where no noise is sure to do, or a sample was not assessed.
    """
    places = range(len(found.ids))
    if any(place not in found.information for place in places):
        return None
    needed: dict[int, float] = {}
    refined: set[int] = set()
    for place in places:
        std = _needed(found, policy, place, accounts)
        if std is None:
            return None
        needed[place] = std
    while True:
        worst = max(needed, key=lambda place: needed[place])
        if worst in refined or needed[worst] <= noise_std:
            break
        refine(worst, needed[worst])
        std = _needed(found, policy, worst, accounts)
        # Two intervals of one number hold at the same time, so the tighter end counts.
        needed[worst] = needed[worst] if std is None else std
        refined.add(worst)
    return _until_classes_agree(found, policy, max(noise_std, needed[worst]), accounts)


def drop_exposed(
    found: Assessment, policy: Policy, noise_std: float, accounts: dict[str, Account] | None
) -> list[int] | None:
    """Places of the samples whose mean may leave, with noise of this std; None where too few are left.

    The fewer samples share the noise, the more each one reveals, so that dropping one may expose another.
    """
    kept = list(range(len(found.ids)))
    while kept:
        exposures = [found.exposure(place, noise_std, len(kept), accounts) for place in kept]
        judgement = policy.judge(exposures)
        bad = {*judgement.exceeded, *judgement.unassessed}
        if not bad:
            return None if judgement.reasons else kept
        kept = [place for place, one in zip(kept, exposures, strict=True) if one.id not in bad]
    return None


def _needed(found: Assessment, policy: Policy, place: int, accounts: dict[str, Account] | None) -> float | None:
    """Least std on the update for one sample; None where none is sure to do.

    What a release reveals falls with the noise, and so does each of its ends.
    """
    batch_size, information = len(found.ids), found.information[place]
    _, largest = information.scale
    if not math.isfinite(largest):
        return None
    if largest <= 0:
        return 0.0

    def kept(log_std: float) -> bool:
        one = found.exposure(place, math.exp(log_std), batch_size, accounts)
        return not any(policy.exceeds(limit, one) for limit in policy.limits)

    middle = math.log(information.tau * math.sqrt(largest) / batch_size)
    low, high = middle - SEARCH_DECADES * math.log(10), middle + SEARCH_DECADES * math.log(10)
    if not kept(high):
        return None
    if kept(low):
        return 0.0
    return math.exp(_bisected(kept, low, high))


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
