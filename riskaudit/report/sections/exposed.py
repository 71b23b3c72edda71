"""Section 4: which samples and classes are exposed, and what the average hides."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from riskaudit.document import tables
from riskaudit.document.appendix import MOST_ROWS
from riskaudit.document.blocks import Block, Cell, Figure, Gallery, Paragraph, Picture, Section, Subheading, Table
from riskaudit.document.cells import SHORT_STATUS, VERDICT_WORDS, estimate_cell, number_cell, verdict_cell
from riskaudit.document.images import safe_png
from riskaudit.document.plots import Span, SpanPlot
from riskaudit.formatting import count, decibels, inside, number, short
from riskaudit.report.sections.columns import column_words
from riskaudit.report.sections.leaks import thresholds
from riskaudit.report.sections.schemes import attacker_words
from riskaudit.results import ClassRow, Estimate, SampleRow
from riskaudit.results.facts import Facts
from riskaudit.results.ranks import known_ends, overlaps
from riskaudit.results.words import riskier_end
from riskaudit.studies.fairness.record import GroupSummary
from riskaudit.studies.fairness.section import group_table

_PRINT_ROWS = 40
_CUT_ABOVE = 200
# With fewer rows than this reasons don't fill a third of a landscape page.
_FEW_REASONS = 6
# After the posterior error.
_SHOWN = ("map_rmse", "i2f", "gradient_norm")
# One norm is that of a whole upload.
_SHOWN_OF_UPLOADS = ("map_rmse", "i2f")
_FIGURE_CLASSES = 20
# The best stand-in first.
_COMPARED = ("i2f", "lavp_l2_max", "gradient_norm")
_INTERVALS_NOTE = "Below a mean: between which ends the samples' own intervals leave it."


def exposed_section(facts: Facts) -> Section:
    """Samples ranked, classes compared, unfairness measures."""
    blocks: list[Block] = []
    average = _average_paragraph(facts)
    if average:
        blocks.append(average)
    blocks += [Subheading("Samples, most exposed first", brief=True), _ranking_paragraph(facts), sample_table(facts)]
    failures = sum(row.status == "failed" for row in facts.result.samples)
    if failures:
        blocks.append(
            Paragraph(
                f"{failures} of {facts.num_samples:,}; they stay in the table with their reason.",
                lead="Samples that failed:",
            )
        )
    pictures = tuple(
        Picture(short(row.id), safe_png(row.image_png), f"class {facts.class_name(row)}, {VERDICT_WORDS[row.verdict]}")
        for row in facts.listed
        if row.image_png is not None
    )
    if pictures:
        blocks += [
            Subheading("Private inputs"),
            Gallery(
                pictures,
                print_items=_PRINT_ROWS,
                caption="These are the private inputs themselves, shown because --show-samples was given.",
            ),
        ]
    blocks += class_blocks(facts)
    return Section("who-is-exposed", "Who is exposed", tuple(blocks))


def _average_paragraph(facts: Facts) -> Paragraph | None:
    values = facts.values(facts.headline)
    if facts.num_known(facts.headline) < 2:
        return None
    if facts.without_point(facts.headline):
        return _average_of_intervals(facts)
    mean, worst = statistics.fmean(values), max(values)
    over = sum(value > mean for value in values)
    text = (
        f"The mean revealed fraction is {number(mean)}; the most exposed sample stands at {number(worst)} "
        f"({number(worst / mean)} times the mean); {over:,} of {len(values):,} samples lie above the mean."
        f"{' These are estimates inside intervals.' if facts.bracketed else ''}"
        if mean > 0
        else "No sample reveals anything: mean and maximum of the revealed fraction are 0."
    )
    classes = [row for row in facts.result.classes if facts.headline in row.proxies]
    if len(classes) > 1:
        ordered = sorted(classes, key=lambda row: row.proxies[facts.headline].mean)
        low, high = ordered[0], ordered[-1]
        doubt = "; their intervals overlap, so these two can’t be told apart"
        text += (
            f" Class means run from {number(low.proxies[facts.headline].mean)} (class {short(low.name)}) to "
            f"{number(high.proxies[facts.headline].mean)} (class {short(high.name)})"
            f"{doubt if means_overlap(low, high, facts.headline) else ''}."
        )
    return Paragraph(text, lead="What the average hides.", brief=True)


def _ranking_paragraph(facts: Facts) -> Paragraph:
    proxy = facts.ranking_proxy
    if proxy is None:
        return Paragraph("No proxy has a value, so the samples stand in the order of the data.")
    if proxy == facts.headline:
        who = f" for {attacker_words(facts)}" if facts.is_joint else ""
        return Paragraph(
            f"Ranked by revealed fraction{who}. Effective dimension is the revealed fraction times the "
            f"{_coordinates(facts)}.{_undecided(facts)}"
        )
    return Paragraph(
        f"The revealed fraction has no value here, so the samples are ranked by {facts.title(proxy)}. "
        "A rank says who is more exposed than whom, not how much leaks."
    )


def _average_of_intervals(facts: Facts) -> Paragraph:
    text = (
        f"The mean revealed fraction lies within {facts.words(facts.headline, statistics.fmean)}, that of the "
        f"most exposed sample within {facts.words(facts.headline, max)}. "
        f"{count(facts.without_point(facts.headline), 'interval')} of {facts.num_known(facts.headline):,} "
        "are too wide for a point value."
    )
    return Paragraph(text, lead="What the average hides.", brief=True)


def _undecided(facts: Facts) -> str:
    """How many samples may be the most exposed, where intervals leave that open."""
    if not facts.num_rivals:
        return ""
    return (
        f" The intervals leave open which of {facts.num_rivals:,} samples is the most exposed: samples whose intervals "
        "overlap can't be ranked against each other, so each has a range of ranks."
    )


def sample_table(facts: Facts) -> Table:
    """One row per sample, all numbers with status and interval."""
    # Without a spectrum the largest eigenvalue stands in.
    shown = (facts.error, *(_SHOWN_OF_UPLOADS if facts.is_joint else _SHOWN))
    shown = shown if facts.num_known(facts.headline) else (*shown, "lavp_l2_max")
    reasons = any(row.reason for row in facts.result.samples)
    return tables.table(
        "samples",
        _sample_caption(facts),
        facts.listed,
        _sample_columns(facts, shown),
        sortable=True,
        layout="landscape"
        if facts.num_samples > MOST_ROWS or (reasons and facts.num_samples >= _FEW_REASONS)
        else "fitted",
        print_rows=_PRINT_ROWS if len(facts.listed) > _CUT_ABOVE else None,
        left_out=facts.num_unlisted,
        brief_rows=5,
        brief=True,
        note=" ".join(filter(None, (facts.reasons_note((facts.headline, *shown)), _left_out(facts)))),
    )


def _sample_columns(facts: Facts, shown: tuple[str, ...]) -> tables.Columns[SampleRow]:
    def proxy_column(proxy: str) -> tables.RowColumn[SampleRow]:
        return tables.column(facts.title(proxy), lambda row: _sample_estimate(row, proxy), brief=proxy == shown[0])

    revealed = facts.title(facts.headline) if facts.is_joint else "Revealed fraction"
    return (
        tables.column("Sample", lambda row: Cell(short(row.id), detail=_ranks(facts, row)), numeric=False, brief=True),
        tables.text("Class", facts.class_name, brief=True),
        tables.text("Upload", lambda row: "none" if row.upload is None else str(row.upload), shown=facts.is_joint),
        tables.column(
            "Verdict",
            lambda row: verdict_cell(row.verdict),
            numeric=False,
            ranked=True,
            filtered=True,
            brief=True,
        ),
        tables.column("Status", _status_cell, numeric=False, brief=True),
        tables.column(revealed, lambda row: _sample_estimate(row, facts.headline), brief=True),
        tables.text(
            "Most revealed column", lambda row: column_words(facts, row), shown=facts.result.data.encoding is not None
        ),
        tables.column(
            "Better than guessing",
            lambda row: _derived_cell(facts, row, lambda share: decibels(share).removesuffix("\u00a0dB")),
            "dB",
            brief=True,
        ),
        tables.column(
            "Effective dimension",
            lambda row: _derived_cell(facts, row, lambda share: number(share * _dimension(facts, row))),
        ),
        *map(proxy_column, shown),
        tables.column("Noise needed", _noise_cell, "std", brief=True),
        tables.column(
            "Loss", lambda row: number_cell(row.loss, missing="failed" if row.status == "failed" else "not applicable")
        ),
    )


def _sample_caption(facts: Facts) -> str:
    if facts.num_unlisted:
        return f"The {len(facts.listed):,} most exposed of {facts.num_samples:,} audited samples"
    return f"All {facts.num_samples:,} audited samples" if facts.num_samples > 1 else "The audited sample"


def _left_out(facts: Facts) -> str:
    """What the table doesn't show of many samples, and where it is."""
    if not facts.num_unlisted:
        return ""
    return (
        f"The {len(facts.listed):,} most exposed of {facts.num_samples:,} samples; {facts.num_unlisted:,} are not "
        "listed. Section 3 has the quantiles of all, audit.json (of a large audit samples.parquet beside it) and "
        "samples.csv hold every row (--format json, --format csv)."
    )


def _status_cell(row: SampleRow) -> Cell:
    return Cell(SHORT_STATUS[row.status], detail=row.reason or "", tone="unknown" if row.reason else "plain")


def _ranks(facts: Facts, row: SampleRow) -> str:
    first, last = facts.rank_ranges.get(row.id, (0, 0))
    return "" if not last else f"rank {first:,}" if first == last else f"ranks {first:,} to {last:,}"


def _sample_estimate(row: SampleRow, proxy: str) -> Cell:
    if proxy not in row.proxies and row.status == "failed":
        return Cell("failed", tone="unknown")
    return estimate_cell(row.proxies.get(proxy))


def _derived_cell(facts: Facts, row: SampleRow, words: Callable[[float], str]) -> Cell:
    """What follows from the revealed fraction, and inherits its status."""
    revealed = row.proxies.get(facts.headline)
    base = estimate_cell(revealed)
    if revealed is not None and revealed.value is not None:
        return Cell(words(revealed.value), revealed.value, base.mark, base.word)
    ends = known_ends(revealed)
    if ends is None:
        return Cell("failed" if row.status == "failed" else base.text, tone="unknown")
    return Cell(f"{words(ends[0])} to {words(ends[1])}", base.sort, base.mark, base.word)


def _noise_cell(row: SampleRow) -> Cell:
    target = row.noise_std_for_target
    if target is None:
        return Cell("failed" if row.status == "failed" else "not applicable", tone="unknown")
    return estimate_cell(Estimate(value=target.std, status=target.status))


def class_blocks(facts: Facts) -> list[Block]:
    """Classes by their mean, as a figure and a table."""
    compared = {proxy for row in facts.result.classes for proxy in row.proxies}
    proxy = next((proxy for proxy in (facts.headline, *_COMPARED) if proxy in compared), None)
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
    shown = rows[:_FIGURE_CLASSES]
    cut = (
        f" Only the {_FIGURE_CLASSES} most exposed of {len(rows)} classes are drawn." if len(shown) < len(rows) else ""
    )
    spans = tuple(
        Span(short(row.name, 16), stat.mean, stat.low, stat.high, stat.min, stat.max)
        for row, stat in ((row, row.proxies[proxy]) for row in shown)
    )
    revealed = proxy == facts.headline
    title = facts.title(proxy)
    return Figure(
        id="classes",
        title=_class_title(rows, proxy, title),
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


def _class_title(rows: list[ClassRow], proxy: str, title: str) -> str:
    """Which class is the most exposed and which the least, as far as intervals tell; the most exposed comes first."""
    first, last = rows[0], rows[-1]
    most = f"({inside(title)} {number(first.proxies[proxy].mean)})"
    least = f"({number(last.proxies[proxy].mean)})"
    if not _apart(first, last, proxy):
        bars = any(row.proxies[proxy].low is not None for row in rows)
        why = "the intervals don't tell these two apart" if bars else "too few samples for intervals"
        return f"Class means run from class {short(first.name)} {most} to class {short(last.name)} {least}; {why}"
    is_most = all(_apart(first, other, proxy) for other in rows[1:])
    is_least = all(_apart(other, last, proxy) for other in rows[:-1])
    if is_most and is_least:
        return (
            f"Class {short(first.name)} is the most exposed on average {most}, class {short(last.name)} the least "
            f"{least}"
        )
    open_ = " and ".join([*["the most"] * (not is_most), *["the least"] * (not is_least)])
    return (
        f"Class {short(first.name)} is more exposed on average {most} than class {short(last.name)} {least}; the "
        f"intervals leave open which class is {open_}"
    )


def _apart(first: ClassRow, second: ClassRow, proxy: str) -> bool:
    """Whether intervals of two classes' means lie beside each other, by who was sampled and by the samples' own."""
    left, right = first.proxies[proxy], second.proxies[proxy]
    if left.low is None or left.high is None or right.low is None or right.high is None:
        return False
    return not overlaps((left.low, left.high), (right.low, right.high)) and not means_overlap(first, second, proxy)


def means_overlap(first: ClassRow, second: ClassRow, proxy: str) -> bool:
    """Whether the samples' intervals leave open which of two classes has the greater mean."""
    left, right = first.proxies[proxy], second.proxies[proxy]
    spans = [
        (stat.mean if stat.mean_low is None else stat.mean_low, stat.mean if stat.mean_high is None else stat.mean_high)
        for stat in (left, right)
    ]
    return (left.mean_low, right.mean_low) != (None, None) and overlaps(spans[0], spans[1])


def _dimension(facts: Facts, row: SampleRow) -> int:
    """Coordinates of one input; of a text those of its own tokens."""
    return facts.dimension if not row.positions else len(row.positions) * facts.result.data.input_shape[-1]


def _coordinates(facts: Facts) -> str:
    if facts.result.data.text is None:
        return f"{facts.dimension:,} coordinates of an input"
    return f"{facts.result.data.input_shape[-1]:,} coordinates of each of a text's tokens"
