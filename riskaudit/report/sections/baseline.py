"""What changed since an earlier audit: configuration, means, and samples matched by id."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from riskaudit.document.blocks import Block, Callout, Cell, Column, Paragraph, Subheading, Table
from riskaudit.document.cells import estimate_cell, number_cell
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
    now, before = (known_ends(one.proxies.get("revealed_fraction")) for one in (row, earlier))
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
    rows = tuple((Cell(name), Cell(_shown(before.get(name))), Cell(_shown(now.get(name)))) for name in names)
    columns = (Column("Setting"), Column("Baseline"), Column("Now"))
    return Table("changed-configuration", "What is configured differently", columns, rows)


def _mean_table(now: Facts, before: Facts) -> Table:
    rows = []
    for proxy in _PROXIES:
        new, old = now.values(proxy), before.values(proxy)
        if not new and not old:
            continue
        mean_new = statistics.fmean(new) if new else None
        mean_old = statistics.fmean(old) if old else None
        change = Cell("no value", tone="unknown")
        if mean_new is not None and mean_old is not None:
            change = Cell(signed(mean_new - mean_old), mean_new - mean_old)
        rows.append(
            (
                Cell(now.title(proxy)),
                number_cell(mean_old, missing="no value"),
                number_cell(mean_new, missing="no value"),
                change,
            )
        )
    columns = (Column("Proxy"), Column("Baseline mean", True), Column("Mean now", True), Column("Change", True))
    return Table("changed-means", "Means over the samples with a value", columns, tuple(rows), brief=True)


def _sample_table(matched: list[tuple[SampleRow, SampleRow]]) -> Table:
    rows = []
    for row, earlier in matched:
        delta = _delta(row, earlier, "revealed_fraction")
        doubt = "can't be told apart" if _overlapping(row, earlier) else ""
        rows.append(
            (
                Cell(short(row.id)),
                estimate_cell(earlier.proxies.get("revealed_fraction")),
                estimate_cell(row.proxies.get("revealed_fraction")),
                Cell(doubt or "not applicable", tone="unknown")
                if delta is None
                else Cell(signed(delta), delta, detail=doubt),
                Cell(f"{earlier.verdict} → {row.verdict}".replace("_", " ")),
            )
        )
    columns = (
        Column("Sample"),
        Column("Revealed fraction, baseline", True),
        Column("Revealed fraction, now", True),
        Column("Change", True),
        Column("Verdict"),
    )
    return Table("changed-samples", "Samples matched by id", columns, tuple(rows), sortable=True, print_rows=40)
