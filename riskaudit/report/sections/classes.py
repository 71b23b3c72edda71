"""Part of section 4: classes compared."""

from __future__ import annotations

from riskaudit.document.blocks import Block, Figure, Paragraph, Subheading, Table
from riskaudit.document.plots import Span, SpanPlot
from riskaudit.formatting import inside, number, short
from riskaudit.report.sections.leaks import thresholds
from riskaudit.results import ClassRow
from riskaudit.results.facts import Facts
from riskaudit.results.ranks import overlaps
from riskaudit.results.words import riskier_end
from riskaudit.studies.fairness.record import GroupSummary
from riskaudit.studies.fairness.section_groups import group_table

_FIGURE_CLASSES = 20
# The best stand-in first.
_COMPARED = ("revealed_fraction", "i2f", "lavp_l2_max", "gradient_norm")
_INTERVALS_NOTE = "Below a mean: between which ends the samples' own intervals leave it."


def class_blocks(facts: Facts) -> list[Block]:
    """Classes by their mean, as a figure and a table."""
    compared = {proxy for row in facts.result.classes for proxy in row.proxies}
    proxy = next((proxy for proxy in _COMPARED if proxy in compared), None)
    heading = Subheading("Classes compared")
    if proxy is None:
        text = "Classes can't be compared: no class has a proxy with values."
        return [heading, Paragraph(text)]
    falling = riskier_end(proxy, facts.result.proxies, "lower" if proxy == "i2f" else "higher") == "higher"
    rows = sorted(
        (row for row in facts.result.classes if proxy in row.proxies),
        key=lambda row: row.proxies[proxy].mean,
        reverse=falling,
    )
    groups = [GroupSummary(name=row.name, num_samples=row.num_samples, statistic=row.proxies[proxy]) for row in rows]
    table = group_table(
        "classes",
        f"{facts.title(proxy)} per class, computed from the samples that have a value",
        groups,
        "Class",
        sortable=True,
        note=_INTERVALS_NOTE if any(row.proxies[proxy].mean_low is not None for row in rows) else "",
    )
    if len(rows) == 1:
        return [heading, Paragraph("All samples belong to one class, so there is nothing to compare."), table]
    return [heading, _class_figure(facts, rows, proxy, table)]


def _class_figure(facts: Facts, rows: list[ClassRow], proxy: str, table: Table) -> Figure:
    first, last = rows[0].proxies[proxy], rows[-1].proxies[proxy]
    shown = rows[:_FIGURE_CLASSES]
    cut = (
        f" Only the {_FIGURE_CLASSES} most exposed of {len(rows)} classes are drawn." if len(shown) < len(rows) else ""
    )
    bars = any(row.proxies[proxy].low is not None for row in shown)
    clear = (
        first.low is not None
        and first.high is not None
        and last.low is not None
        and last.high is not None
        and (first.low > last.high or first.high < last.low)
    )
    clear = clear and not means_overlap(rows[0], rows[-1], proxy)
    caveat = "" if clear else "; the intervals don't tell them apart" if bars else "; too few samples for intervals"
    spans = tuple(
        Span(short(row.name, 16), stat.mean, stat.low, stat.high, stat.min, stat.max)
        for row, stat in ((row, row.proxies[proxy]) for row in shown)
    )
    revealed = proxy == "revealed_fraction"
    title = facts.title(proxy)
    return Figure(
        id="classes",
        title=(
            f"Class {short(rows[0].name)} is the most exposed on average ({inside(title)} {number(first.mean)}), "
            f"class {short(rows[-1].name)} the least ({number(last.mean)}){caveat}"
        ),
        alt=f"Mean {inside(title)} of {len(shown)} classes with intervals and the range of their samples.",
        plot=SpanPlot(
            f"{inside(title)} ({'0 = nothing, 1 = all' if revealed else (facts.units(proxy) or 'its units')})",
            spans,
            thresholds(facts) if revealed else (),
            (0.0, 1.0) if revealed else None,
        ),
        table=table,
        caption=(
            "Square: mean of the class. Thick bar: bootstrap interval of the mean, where there are enough samples. "
            f"Thin line: smallest to largest sample.{cut}"
        ),
    )


def means_overlap(first: ClassRow, second: ClassRow, proxy: str = "revealed_fraction") -> bool:
    """Whether the samples' intervals leave open which of two classes has the greater mean."""
    one, other = first.proxies[proxy], second.proxies[proxy]
    spans = [
        (stat.mean if stat.mean_low is None else stat.mean_low, stat.mean if stat.mean_high is None else stat.mean_high)
        for stat in (one, other)
    ]
    return (one.mean_low, other.mean_low) != (None, None) and overlaps(spans[0], spans[1])
