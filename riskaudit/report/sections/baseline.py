"""What changed since an earlier audit: configuration, means, and samples matched by id."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Callout, Cell, Paragraph, Subheading, Table
from riskaudit.document.cells import estimate_cell
from riskaudit.formatting import count, number, short, signed
from riskaudit.results import AuditResult, SampleRow
from riskaudit.results.facts import Facts
from riskaudit.results.ranks import known_ends, overlaps

_PROXIES = ("revealed_fraction", "posterior_rmse", "map_rmse", "i2f", "lavp_l2_max", "gradient_norm")
_CONFIGURATION = ("tool", "checkpoint", "data", "release", "threat_model", "prior", "settings")


def baseline_blocks(result: AuditResult, baseline: AuditResult) -> list[Block]:
    """The changes, as a sentence and three tables."""
    now, before = Facts(result), Facts(baseline)
    old = {row.id: row for row in baseline.samples}
    matched = [(row, old[row.id]) for row in now.ranked if row.id in old]
    blocks: list[Block] = [Subheading("Changes since the baseline", brief=True), _summary(now, before, matched)]
    if result.data.sha256 != baseline.data.sha256 or result.data.sha256 is None:
        text = "The data differ or are not hashed, so equal ids may not mean equal samples."
        blocks.append(Callout("Samples are matched by id", (text,), "medium"))
    blocks += [_configuration_table(result, baseline), _mean_table(now, before)]
    if matched:
        blocks.append(_sample_table(matched))
    return blocks


def _summary(now: Facts, before: Facts, matched: list[tuple[SampleRow, SampleRow]]) -> Paragraph:
    deltas = [
        delta for pair in matched for delta in [_delta(pair[0], pair[1], "revealed_fraction")] if delta is not None
    ]
    new, gone = now.num_samples - len(matched), before.num_samples - len(matched)
    text = (
        f"Baseline of {before.result.created_at}: {count(len(matched), 'sample')} matched by id, {new:,} new, "
        f"{gone:,} no longer there."
    )
    if deltas:
        worse = sum(delta > 0 for delta in deltas)
        text += (
            f" The revealed fraction rose for {worse:,} of them and changed by {signed(statistics.fmean(deltas))} "
            "on average."
        )
    doubtful = sum(_overlapping(*pair) for pair in matched)
    if doubtful:
        text += f" For {doubtful:,} of them the intervals overlap, so before and now can't be told apart."
    return Paragraph(text, brief=True)


def _delta(row: SampleRow, earlier: SampleRow, proxy: str) -> float | None:
    now, before = row.proxies.get(proxy), earlier.proxies.get(proxy)
    if now is None or before is None or now.value is None or before.value is None:
        return None
    return now.value - before.value


def _overlapping(row: SampleRow, earlier: SampleRow) -> bool:
    """Whether intervals leave open in which of two audits a sample revealed more."""
    now, before = (known_ends(each.proxies.get("revealed_fraction")) for each in (row, earlier))
    return (
        now is not None and before is not None and (now[0] < now[1] or before[0] < before[1]) and overlaps(now, before)
    )


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return short(", ".join(_shown(part) for part in value) or "empty", 80)
    return number(value) if isinstance(value, float) else short(str(value), 80)


def _configuration_table(result: AuditResult, baseline: AuditResult) -> Table | Paragraph:
    now = dict(_flatten(result.model_dump(include=set(_CONFIGURATION))))
    before = dict(_flatten(baseline.model_dump(include=set(_CONFIGURATION))))
    names = [name for name in dict.fromkeys((*now, *before)) if now.get(name) != before.get(name)]
    if not names:
        return Paragraph("Configuration, checkpoint and data are the same as in the baseline.")
    columns: tables.Columns[str] = (
        tables.text("Setting", lambda name: name),
        tables.text("Baseline", lambda name: _shown(before.get(name))),
        tables.text("Now", lambda name: _shown(now.get(name))),
    )
    return tables.table("changed-configuration", "What is configured differently", names, columns)


def _mean_table(now: Facts, before: Facts) -> Table:
    def mean(facts: Facts, proxy: str) -> float | None:
        values = facts.values(proxy)
        return statistics.fmean(values) if values else None

    def change(proxy: str) -> Cell:
        new, old = mean(now, proxy), mean(before, proxy)
        return _change_cell(None if new is None or old is None else new - old, missing="no value")

    columns: tables.Columns[str] = (
        tables.text("Proxy", now.title),
        tables.number("Baseline mean", lambda proxy: mean(before, proxy), missing="no value"),
        tables.number("Mean now", lambda proxy: mean(now, proxy), missing="no value"),
        tables.column("Change", change),
    )
    proxies = [proxy for proxy in _PROXIES if now.values(proxy) or before.values(proxy)]
    return tables.table("changed-means", "Means over the samples with a value", proxies, columns, brief=True)


def _change_cell(delta: float | None, doubt: str = "", missing: str = "not applicable") -> Cell:
    return Cell(doubt or missing, tone="unknown") if delta is None else Cell(signed(delta), delta, detail=doubt)


def _sample_change(pair: tuple[SampleRow, SampleRow]) -> Cell:
    doubt = "can't be told apart" if _overlapping(*pair) else ""
    return _change_cell(_delta(*pair, "revealed_fraction"), doubt)


_SAMPLE_COLUMNS: tables.Columns[tuple[SampleRow, SampleRow]] = (
    tables.text("Sample", lambda pair: short(pair[0].id)),
    tables.column("Revealed fraction, baseline", lambda pair: estimate_cell(pair[1].proxies.get("revealed_fraction"))),
    tables.column("Revealed fraction, now", lambda pair: estimate_cell(pair[0].proxies.get("revealed_fraction"))),
    tables.column("Change", _sample_change),
    tables.text("Verdict", lambda pair: f"{pair[1].verdict} → {pair[0].verdict}".replace("_", " ")),
)


def _sample_table(matched: list[tuple[SampleRow, SampleRow]]) -> Table:
    return tables.table(
        "changed-samples", "Samples matched by id", matched, _SAMPLE_COLUMNS, sortable=True, print_rows=40
    )
