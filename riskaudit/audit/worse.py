"""Two audits of the same samples as one: of every number the riskier stands, and it is said whose it is.

A defence that spoils single parameters is audited as it is, and without those parameters, as an attacker goes by who
knows it (`riskaudit.release.adapted`). With the choices of the steps known, the second release is a part of the first,
so that revealed fractions and posterior errors of the second are never the riskier but for rounding and intervals
(H - H' is positive semi-definite); numbers that are divided by a norm, or belong to one draw of the noise, may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from riskaudit.audit.rows import AuditContext, BatchRows
from riskaudit.proxies import Proxy
from riskaudit.results import Estimate, SampleRow
from riskaudit.results.ranks import position
from riskaudit.results.tables import ColumnRisk
from riskaudit.results.verdicts import verdict_of
from riskaudit.results.words import Riskier


def with_worse(context: AuditContext, whole: BatchRows, part: BatchRows) -> BatchRows:
    """Rows of a release, with the riskier numbers of another one of the same samples.

    Args:
        context: of the release.
        whole: its rows.
        part: those of the other, without what steps of the first spoil.
    """
    rows = []
    for pair in zip(whole.rows, part.rows, strict=True):
        row, adapted = worse_row(context, *pair)
        rows.append(row.model_copy(update={"adapted": adapted}))
    return replace(whole, rows=rows, matvecs=whole.matvecs + part.matvecs)


def worse_row(context: AuditContext, one: SampleRow, other: SampleRow) -> tuple[SampleRow, list[str]]:
    """Of one sample's rows the riskier numbers, and the ids of the proxies that the second row gave."""
    proxies, changed = _worse_proxies(context.proxies, one, other)
    columns = {name: _worse_column(own, other.columns[name]) for name, own in one.columns.items()}
    if not changed and columns == one.columns:
        return one, []
    # What else a row says rests on the number that decides.
    base = other if context.headline in changed else one
    return with_verdict(context, base.model_copy(update={"proxies": proxies, "columns": columns})), changed


def with_verdict(context: AuditContext, row: SampleRow) -> SampleRow:
    """A row with the verdict of its numbers."""
    attacker = context.attacker if context.is_joint else None
    return row.model_copy(update={"verdict": verdict_of(row, context.thresholds, context.defended, attacker)})


def _worse_column(own: ColumnRisk, other: ColumnRisk) -> ColumnRisk:
    """The one that reveals more; what isn't known of the release itself isn't known by another one."""
    highs = own.revealed.ends[1], other.revealed.ends[1]
    return own if highs[0] is None or highs[1] is None or highs[0] >= highs[1] else other


def _worse_proxies(
    proxies: Mapping[str, Proxy], whole: SampleRow, part: SampleRow
) -> tuple[dict[str, Estimate], list[str]]:
    """The estimates, and ids of those that the second row gave."""
    worse, adapted = dict[str, Estimate](), list[str]()
    for name, own in whole.proxies.items():
        other, riskier = part.proxies[name], proxies[name].riskier
        # What isn't known of the release itself isn't known by another one.
        if not own.assessed or not other.assessed:
            worse[name] = own
            continue
        worse[name], is_other = riskier_of(own, other, riskier)
        adapted += [name] if is_other else []
    return worse, adapted


def riskier_of(own: Estimate, other: Estimate, riskier: Riskier) -> tuple[Estimate, bool]:
    """The riskier of two numbers that may be relied on, with ends that hold for it; whether it is the second.

    Args:
        own: the first, which stands where both are equal.
        other: the second.
        riskier: "higher" or "lower".
    """
    pick = max if riskier == "higher" else min
    places = position(own, riskier), position(other, riskier)
    assert places[0] is not None
    assert places[1] is not None
    is_other = places[0] != places[1] and pick(places[0], places[1]) == places[1]
    chosen = other if is_other else own
    if (own.low, own.high, other.low, other.high) == (None, None, None, None):
        return chosen, is_other
    low, high = (pick(*ends) for ends in zip(own.ends, other.ends, strict=True))  # type: ignore[type-var]
    return chosen.model_copy(update={"low": low, "high": high}), is_other
