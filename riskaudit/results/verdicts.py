"""Verdicts from numbers: the one definition that the audit and the report share."""

from __future__ import annotations

from collections.abc import Collection

from riskaudit.results.audit import SampleRow
from riskaudit.results.base import Estimate, Verdict
from riskaudit.results.subject import Attacker, ReleaseInfo, Thresholds
from riskaudit.results.tables import ColumnRisk

HEADLINE = "revealed_fraction"
_TOKENS = "token_recovery"
# Noise per entry of this many times an upload's norm leaves nothing of it: what it tells of anything is less than half
# the square of the inverse, in nats, and the mean over thousands like it is still noise.
DROWNED = 10.0


def attacker_of(release: ReleaseInfo) -> Attacker | None:
    """Whose numbers decide; None where every sample leaves alone."""
    return None if release.coupling == "per_sample" else release.attacker or "informed"


def headline_of(attacker: Attacker | None) -> str:
    """Id of the revealed fraction that verdicts and limits go by; None where every sample leaves alone."""
    return f"informed_{HEADLINE}" if attacker == "informed" else HEADLINE


def tokens_of(attacker: Attacker | None) -> str:
    """Id of the recovery of a text's tokens likewise."""
    return f"informed_{_TOKENS}" if attacker == "informed" else _TOKENS


def error_of(attacker: Attacker | None) -> str:
    """Id of the posterior error likewise."""
    return "informed_posterior_rmse" if attacker == "informed" else "posterior_rmse"


def verdict(estimate: Estimate, thresholds: Thresholds, defended: bool) -> Verdict:
    """High above ``high``, medium from ``medium`` on, low below it; of an interval the upper end counts.

    An undefended sample is high whatever it reveals at the reference noise, which nobody adds.
    """
    if not defended:
        return "high"
    revealed = estimate.ends[1]
    if revealed is None or not estimate.assessed:
        return "not_assessed"
    if revealed > thresholds.high:
        return "high"
    return "medium" if revealed >= thresholds.medium else "low"


def cautious(
    estimate: Estimate,
    calibrated: Estimate | None,
    concentration: float,
    columns: Collection[ColumnRisk] = (),
    tokens: Estimate | None = None,
) -> Estimate:
    """The revealed fraction with its largest upper end: certified or calibrated, of the coordinates that are reached.

    Of a table, of its most revealed column; of a text, the recovery of its tokens, where that is more. Where nothing is
    known of one, nothing is known that could protect.

    Args:
        estimate: the mean over all coordinates.
        calibrated: the same by a calibration, if there is one; 1 where its upper end is unknown.
        concentration: of the row.
        columns: likewise.
        tokens: token recovery of the row, where it is a text.
    """
    high = estimate.ends[1]
    if high is None:
        return estimate
    if calibrated is not None:
        high = 1.0 if calibrated.high is None else max(high, calibrated.high)
    high = min(1.0, concentration * high)
    most = most_revealed(columns)
    told = 0.0 if tokens is None or tokens.status == "not_applicable" else tokens.ends[1]
    if most is None or told is None:
        return estimate.model_copy(update={"value": None, "low": None, "high": None, "status": "not_applicable"})
    return estimate.model_copy(update={"high": max(high, most, told)})


def most_revealed(columns: Collection[ColumnRisk]) -> float | None:
    """The upper end of what is revealed of any column, 0 of none; None where it isn't known of one."""
    ends = [column.revealed.ends[1] for column in columns]
    return None if None in ends else max((end for end in ends if end is not None), default=0.0)


def verdict_of(row: SampleRow, thresholds: Thresholds, defended: bool, attacker: Attacker | None = None) -> Verdict:
    """What a row's numbers say, whatever verdict stands in it."""
    name = headline_of(attacker)
    headline = row.proxies.get(name)
    if row.status == "failed" or headline is None:
        return "not_assessed" if defended or row.status == "failed" else "high"
    columns, tokens = row.columns.values(), row.proxies.get(tokens_of(attacker))
    known = cautious(headline, row.calibrated.get(name), row.concentration, columns, tokens)
    return verdict(known, thresholds, defended)
