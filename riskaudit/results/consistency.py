"""Numbers that can't be: what an audit.json is refused for, since nothing could be decided from it.

Rounding is allowed for. What merely disagrees with the numbers, such as a verdict, isn't refused but decided anew
(`riskaudit.report.recomputation`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from riskaudit.errors import ResultError
from riskaudit.results.base import RELIABLE, Estimate, SuccessProbability

if TYPE_CHECKING:
    from riskaudit.results.audit import AuditResult, NoiseCurvePoint, SampleRow

# Relative to the larger number; printed and computed numbers agree far better.
ROUNDING = 1e-6
# Of 1 - (posterior_rmse / tau)^2 against revealed_fraction: tau may have been rounded to float32.
IDENTITY_ROUNDING = 1e-4
_SHARES = frozenset({"revealed_fraction", "informed_revealed_fraction", "token_recovery", "informed_token_recovery"})
_ERRORS = frozenset(
    {"posterior_rmse", "informed_posterior_rmse", "map_rmse", "map_i2f", "i2f", "i2f_lower_bound", "expected_rmse"}
)
# Both sides of one number, for every attacker.
_PAIRS = (("revealed_fraction", "posterior_rmse"), ("informed_revealed_fraction", "informed_posterior_rmse"))


def check_consistency(result: AuditResult, name: str) -> None:
    """Refuse an audit whose numbers contradict each other; ``name`` is for the message.

    Raises:
        ResultError: the first contradiction, in one sentence.
    """
    fault = next(_faults(result), None)
    if fault is not None:
        raise ResultError(f"expected numbers that can be true in {name}, found {fault}; run the scan again")


def _faults(result: AuditResult) -> Iterator[str]:
    thresholds, release = result.settings.thresholds, result.release
    if not 0 <= thresholds.medium <= thresholds.high <= 1:
        yield f"thresholds out of order (medium {thresholds.medium:g}, high {thresholds.high:g})"
    if release.noise is not None and not release.noise.std > 0:
        yield f"noise of standard deviation {release.noise.std:g}"
    if release.defended and release.noise is None:
        yield "a release that is called defended and has no noise"
    if not result.prior.std > 0:
        yield f"a prior of standard deviation {result.prior.std:g}"
    if any(size < 1 for size in result.data.input_shape):
        yield f"inputs of shape {result.data.input_shape[:8]}"
    for number, row in enumerate(result.samples):
        for fault in _row_faults(row):
            yield f"{fault} of sample number {number}"
    ids = {row.id for row in result.samples}
    for finding in result.checks:
        if not ids.issuperset(finding.sample_ids):
            yield f"a finding of the check {finding.id[:40]!r} on samples that aren't there"
    for point in result.noise_curve:
        yield from _curve_faults(point)


def _row_faults(row: SampleRow) -> Iterator[str]:
    for proxy, estimate in row.proxies.items():
        yield from (f"{proxy} with {fault}" for fault in _estimate_faults(proxy, estimate))
    for proxy, estimate in row.calibrated.items():
        if _out_of_order(estimate.low, estimate.high) or any(_impossible(proxy, end) for end in _ends(estimate)):
            yield f"a calibrated {proxy} with an impossible interval"
    if row.predicted_rmse is not None:
        yield from (f"predicted_rmse with {fault}" for fault in _estimate_faults("map_rmse", row.predicted_rmse))
    yield from _probability_faults(row.success_probability)
    for risk in row.columns.values():
        kind = "revealed_fraction" if risk.kind == "category" else "posterior_rmse"
        faults = (*_estimate_faults(kind, risk.estimate), *_estimate_faults("revealed_fraction", risk.revealed))
        yield from (f"a column with {fault}" for fault in faults)
    for place in row.positions or ():
        for proxy, share in (("revealed_fraction", place.revealed_fraction), ("token_recovery", place.token_recovery)):
            if share is not None:
                yield from (f"{proxy} with {fault} at a position" for fault in _estimate_faults(proxy, share))
    if row.noise_std_for_target is not None and (row.noise_std_for_target.std or 0.0) < 0:
        yield "a noise needed below 0"


def _estimate_faults(proxy: str, estimate: Estimate) -> Iterator[str]:
    if estimate.value is None and estimate.status in {"exact", "converged"}:
        yield f"no value, called {estimate.status}"
    if any(_impossible(proxy, number) for number in (estimate.value, *_ends(estimate))):
        yield "a number outside its range"
    if _out_of_order(estimate.low, estimate.high):
        yield "the ends of its interval in the wrong order"
    elif estimate.status in RELIABLE and (
        _out_of_order(estimate.low, estimate.value) or _out_of_order(estimate.value, estimate.high)
    ):
        yield "a value outside its interval"


def _ends(estimate: Estimate) -> tuple[float | None, float | None]:
    return estimate.low, estimate.high


def _impossible(proxy: str, number: float | None) -> bool:
    if number is None:
        return False
    if proxy in _SHARES:
        return not -ROUNDING <= number <= 1 + ROUNDING
    return proxy in _ERRORS and number < 0


def _out_of_order(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low > high + ROUNDING * max(abs(low), abs(high))


def _probability_faults(successes: list[SuccessProbability]) -> Iterator[str]:
    for success in successes:
        shares = (success.low, success.probability, success.high)
        if any(_impossible("revealed_fraction", share) for share in shares) or _out_of_order(success.low, success.high):
            yield "an impossible probability of success"


def exclusive(row: SampleRow, tau: float) -> bool:
    """Whether a row breaks posterior_rmse^2 = tau^2 (1 - revealed_fraction), which holds with an isotropic prior.

    Not refused, since each number may be right and the other an edit: nothing is claimed of such a sample.
    """
    return any(_exclude(row.proxies.get(share), row.proxies.get(error), tau) for share, error in _PAIRS)


def _exclude(revealed: Estimate | None, error: Estimate | None, tau: float) -> bool:
    if revealed is None or error is None or not {revealed.status, error.status} <= RELIABLE:
        return False
    pairs = ((revealed.value, error.value), (revealed.low, error.high), (revealed.high, error.low))
    return any(
        not math.isclose(1 - min(rmse / tau, 1e6) ** 2, share, rel_tol=0, abs_tol=IDENTITY_ROUNDING)
        for share, rmse in pairs
        if share is not None and rmse is not None
    )


def _curve_faults(point: NoiseCurvePoint) -> Iterator[str]:
    shares = (point.revealed_fraction_mean, point.revealed_fraction_max)
    if any(_impossible("revealed_fraction", share) for share in shares) or not point.std > 0:
        yield f"an impossible point of the noise curve at {point.std:g}"
