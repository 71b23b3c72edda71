"""Last part of section 4: how evenly protection falls, whether groups differ, and whom the average hides.

From ``studies.fairness``, or computed from the samples where an audit has no such study.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Cell, Figure, Paragraph, Subheading, Table
from riskaudit.document.cells import SHORT_STATUS, ends_cell, number_cell
from riskaudit.document.plots import Panel, PanelPlot
from riskaudit.formatting import count, inside, interval, number, percent, sentence, short, signed
from riskaudit.results import GroupStatistic
from riskaudit.results.facts import Facts
from riskaudit.studies.fairness.exposure import fairness
from riskaudit.studies.fairness.record import (
    ATTACK_RMSE,
    Distribution,
    FairnessStudy,
    GroupComparison,
    GroupPair,
    GroupSummary,
    SampleExposure,
)

_PRINTED_PAIRS = 6
_PRINTED_GROUPS = 20
_UNKNOWN = "not assessed"
_NOUNS = {"class": "classes", "group": "groups"}
# Upper ends of |Cliff's delta| (Romano et al. 2006).
_MAGNITUDES = ((0.147, "negligible"), (0.33, "small"), (0.474, "medium"))
_FEWEST_FOR_CURVE = 5
_CURVE_POINTS = 21
_LISTED_SAMPLES = 10


def measure_title(facts: Facts, measure: str) -> str:
    """A measure's name for readers."""
    return "Strongest attack's RMSE" if measure == ATTACK_RMSE else facts.title(measure)


def comparison_blocks(facts: Facts, study: FairnessStudy, by: str) -> list[Block]:
    """What the tests say of classes or groups; effect sizes beside every p-value."""
    comparisons = [
        comparison
        for comparison in study.comparisons
        if comparison.by == by and any(group.median is not None for group in comparison.groups)
    ]
    if not comparisons:
        return []
    head, noun = comparisons[0], _NOUNS[by]
    blocks: list[Block] = []
    if by == "group":
        title = inside(measure_title(facts, head.measure))
        first = head.groups[0]
        lead = "has the most exposed estimate" if head.doubt else "is the most exposed"
        finding = f"Group {short(first.name, 24)} {lead}: median {title} " + (
            number(first.median) if first.median is not None else "unknown"
        )
        blocks += [
            Subheading(f"Groups of {short(study.groups_name or 'the user', 60)} compared"),
            group_table(
                "groups",
                finding if len(head.groups) > 1 else f"{measure_title(facts, head.measure)} of the only group",
                head.groups,
                "Group",
                sortable=True,
                print_rows=_PRINTED_GROUPS,
                layout="compact",
            ),
        ]
    if len(head.groups) == 1:
        # Of a single class the table of classes says as much.
        alone = Paragraph("All samples belong to one group, so there is nothing to compare.")
        return [*blocks, alone] if blocks else []
    text = " ".join(_verdict(facts, comparison, noun) for comparison in _distinct(comparisons))
    if head.doubt:
        text = f"{text} {sentence(head.doubt)}"
    blocks.append(Paragraph(text, lead=f"Do {noun} differ?"))
    differing = [pair for pair in head.pairs if pair.differs]
    if differing:
        blocks.append(_pair_table(facts, head, differing, noun))
    return blocks


def _distinct(comparisons: list[GroupComparison]) -> list[GroupComparison]:
    """Without those that say the same: revealed fraction and posterior error share their ranks under most priors."""
    distinct: dict[tuple[int, str], GroupComparison] = {}
    for comparison in comparisons:
        test = comparison.kruskal_wallis
        outcome = test.note or "" if test.p_value is None else f"{test.p_value:.9g}"
        distinct.setdefault((len(comparison.groups), outcome), comparison)
    return list(distinct.values())


def _verdict(facts: Facts, comparison: GroupComparison, noun: str) -> str:
    title, test = inside(measure_title(facts, comparison.measure)), comparison.kruskal_wallis
    if test.p_value is None or comparison.differs is None:
        why = test.note or SHORT_STATUS[test.status]
        return f"For {title} that can't be tested ({why}), which is no sign that they are alike."
    size = f", ε² = {number(comparison.epsilon_squared)}" if comparison.epsilon_squared is not None else ""
    figures = f"(Kruskal-Wallis p = {number(test.p_value)}{size}{'; ' + test.note if test.note else ''})"
    if not comparison.differs:
        return f"No difference in {title} is shown {figures}; that is no proof that {noun} are alike."
    num_differing = sum(pair.differs for pair in comparison.pairs)
    if not num_differing:
        why = f" ({comparison.note})" if comparison.note else ""
        return (
            f"They differ in {title} {figures}, but no single pair can be told apart after Holm's correction{why}."
            f"{_largest(comparison)}"
        )
    against_rest = any(pair.second is None for pair in comparison.pairs)
    kind = f"{noun} differ from all others together" if against_rest else "pairs differ"
    return (
        f"They differ in {title} {figures}: {num_differing:,} of {len(comparison.pairs):,} {kind} after Holm's "
        "correction."
    )


def _largest(comparison: GroupComparison) -> str:
    if not comparison.pairs:
        return ""
    pair = max(comparison.pairs, key=lambda pair: abs(pair.effect))
    return (
        f" The largest effect is that of {short(pair.first, 24)} against {_second(pair)}: Cliff's delta "
        f"{signed(pair.effect)}, {_magnitude(pair.effect)}."
    )


def _pair_table(facts: Facts, comparison: GroupComparison, pairs: Sequence[GroupPair], noun: str) -> Table:
    medians = {group.name: group.median for group in comparison.groups}
    worst = max(pairs, key=lambda pair: abs(pair.effect))
    title = inside(measure_title(facts, comparison.measure))
    columns: tables.Columns[GroupPair] = (
        tables.text("First", lambda pair: short(pair.first, 24)),
        tables.text("Second", _second),
        tables.number("Median of the first", lambda pair: medians.get(pair.first)),
        tables.number("Median of the second", lambda pair: medians.get(pair.second or ""), missing="all others"),
        tables.column("Cliff's delta", lambda pair: Cell(signed(pair.effect), pair.effect)),
        tables.text("Size", lambda pair: _magnitude(pair.effect)),
        tables.number("p, corrected", lambda pair: pair.p_adjusted),
    )
    return tables.table(
        f"{comparison.by}-pairs",
        f"{short(worst.first, 24)} and {_second(worst)} differ most in {title}: Cliff's delta {signed(worst.effect)} "
        f"({_magnitude(worst.effect)})",
        pairs,
        columns,
        note=f"Mann-Whitney tests of {noun} with at least 5 samples, p after Holm. Delta: +1 = every sample of the "
        "first has a greater value than every one of the second, 0 = as often as not.",
        sortable=True,
        print_rows=_PRINTED_PAIRS,
        layout="compact",
    )


def _second(pair: GroupPair) -> str:
    return "all others" if pair.second is None else short(pair.second, 24)


def _magnitude(effect: float) -> str:
    return next((word for limit, word in _MAGNITUDES if abs(effect) < limit), "large")


def group_table(
    table_id: str, caption: str, groups: Sequence[GroupSummary], noun: str, **look: Unpack[tables.Look]
) -> Table:
    """Groups side by side: what one measure is in each of them; ``noun`` is what a group is called."""
    levels = {group.statistic.confidence for group in groups if group.statistic and group.statistic.low is not None}
    confidence = levels.pop() if len(levels) == 1 else None
    level = f", {percent(confidence)}" if confidence is not None else ""

    def statistic(title: str, value: Callable[[GroupStatistic], float | None]) -> tables.RowColumn[GroupSummary]:
        return tables.number(title, lambda group: value(group.statistic) if group.statistic else None, missing=_UNKNOWN)

    def num_valued(group: GroupSummary) -> int:
        valued = group.statistic.num_samples if group.statistic else 0
        return group.num_samples if valued is None else valued

    medians, unknown = any(group.median is not None for group in groups), Cell(_UNKNOWN, tone="unknown")
    columns: tables.Columns[GroupSummary] = (
        tables.text(noun, lambda group: short(group.name)),
        tables.count("Samples", lambda group: group.num_samples),
        tables.count("With a value", num_valued),
        tables.number("Median", lambda group: group.median, missing=_UNKNOWN, shown=medians),
        tables.column("Mean", _mean_cell),
        tables.column(f"Interval of the mean (bootstrap{level})", _interval_cell, numeric=False),
        tables.column(
            "Std",
            lambda group: number_cell(group.statistic.std, missing="too few samples") if group.statistic else unknown,
            shown=not medians,
        ),
        statistic("Minimum", lambda values: values.min),
        statistic("Maximum", lambda values: values.max),
    )
    return tables.table(table_id, caption, groups, columns, **look)


def _mean_cell(group: GroupSummary) -> Cell:
    values = group.statistic
    return ends_cell(values.mean, values.mean_low, values.mean_high) if values else Cell(_UNKNOWN, tone="unknown")


def _interval_cell(group: GroupSummary) -> Cell:
    values = group.statistic
    if values is None or values.low is None:
        return Cell((values.note if values else None) or "too few samples", tone="unknown")
    return Cell(interval(values.low, values.high))


def fairness_study_blocks(facts: Facts) -> list[Block]:
    """Lorenz curves, groups compared, the least protected samples, and their influence on training."""
    study = facts.result.studies.get(FairnessStudy) or fairness(facts.result)
    measured = [each for each in study.distributions if each.num_samples]
    blocks: list[Block] = [Subheading("How evenly protection falls")]
    if not measured:
        text = (
            "No sample has a revealed fraction or a posterior error that may be relied on, so how evenly protection "
            "falls is not known. That is not a finding of safety."
        )
        return [*blocks, Paragraph(text)]
    drawn = [each for each in measured if each.num_samples >= _FEWEST_FOR_CURVE and each.lorenz]
    table = _distribution_table(facts, measured)
    blocks.append(_lorenz_figure(facts, drawn, table) if drawn else table)
    blocks += [block for by in ("class", "group") for block in comparison_blocks(facts, study, by)]
    blocks += _exposed_blocks(facts, study)
    if study.notes:
        blocks.append(Paragraph(" ".join(sentence(note) for note in study.notes), lead="Notes."))
    return blocks


def _lorenz_figure(facts: Facts, drawn: list[Distribution], table: Table) -> Figure:
    first = drawn[0]
    share = first.worst_tenth_share
    held = {
        facts.headline: "of all that is revealed",
        facts.error: "of all the error that attackers are left",
        ATTACK_RMSE: "of all the error that attackers were left",
    }.get(first.measure, f"of the sum of {inside(measure_title(facts, first.measure))}")
    carries = percent(share) if share is not None else "an unknown share"
    return Figure(
        id="fairness",
        title=f"The most exposed tenth of the samples carries {carries} {held} (10\u00a0% if all were alike)",
        alt=f"Lorenz curves of {count(len(drawn), 'measure')} over the samples, each with the line of equality.",
        plot=PanelPlot(
            "share of samples, least value first",
            "share of the sum",
            tuple(Panel(measure_title(facts, each.measure), _points(each)) for each in drawn),
            "Lorenz curve",
            "",
            "all samples alike",
            False,
            (-0.03, 1.03),
            joined=True,
        ),
        table=table,
        caption=(
            "The further a curve hangs below the line, the more unevenly its quantity falls on the samples. "
            f"{_at_reference(facts)}"
        ).strip(),
    )


def _points(each: Distribution) -> tuple[tuple[float, float], ...]:
    """Few enough for markers; first and last are always there."""
    points = [(point.samples, point.quantity) for point in each.lorenz]
    last = len(points) - 1
    chosen = sorted({round(number * last / (_CURVE_POINTS - 1)) for number in range(_CURVE_POINTS)})
    return tuple(points[number] for number in chosen)


def _at_reference(facts: Facts) -> str:
    if facts.result.release.defended:
        return ""
    return "Numbers are those of the reference noise, which the client does not add: they rank samples."


def _distribution_table(facts: Facts, measured: list[Distribution]) -> Table:
    columns: tables.Columns[Distribution] = (
        tables.column(
            "Measure",
            lambda each: Cell(measure_title(facts, each.measure), detail=sentence(each.note) if each.note else ""),
            numeric=False,
        ),
        tables.count("Samples", lambda each: each.num_samples),
        tables.number("Gini", lambda each: each.gini),
        tables.share("Riskiest tenth holds", lambda each: each.worst_tenth_share),
        tables.number("Median", lambda each: each.median),
        tables.number("Worst", lambda each: each.worst),
        tables.number("Worst / median", lambda each: each.worst_to_median),
        tables.text("Worst sample", lambda each: short(each.worst_sample or "none", 24)),
    )
    left_out = max(each.num_left_out for each in measured)
    note = f" {count(left_out, 'sample')} without a value to rely on left out." if left_out else ""
    return tables.table(
        "fairness",
        "How unevenly each measure falls on the samples",
        measured,
        columns,
        note="Gini: 0 = all samples alike, towards 1 = few samples carry all. Worst: the greatest revealed fraction, "
        f"the least error.{note}",
        layout="compact",
    )


def _exposed_blocks(facts: Facts, study: FairnessStudy) -> list[Block]:
    ranked = sorted(
        (each for each in study.samples if each.protection is not None), key=lambda each: each.protection or 0.0
    )
    if len(study.samples) < 2 or not ranked or study.average_protection is None:
        return []
    unknown = len(study.not_assessed)
    are = "is" if unknown == 1 else "are"
    doubt = f" {count(unknown, 'more sample')} {are} not assessed and may be less protected." * bool(unknown)
    limit, number_of = "a tenth" if study.threshold == 0.1 else percent(study.threshold), len(study.exposed)
    if number_of:
        have = "has" if number_of == 1 else "have"
        finding = (
            f"{number_of:,} of {len(study.samples):,} samples {have} less than {limit} of the average's protection"
        )
    else:
        least = ranked[0].share_of_average
        rest = f"; the least protected has {percent(min(1.0, least))}" if least is not None else ""
        finding = f"No assessed sample has less than {limit} of the average's protection{rest}"
    text = (
        "Protection is the posterior error, of intervals the lower end; the average is "
        f"{number(study.average_protection)}.{doubt} {_influence_words(study)}"
    )
    rows = {row.id: row for row in facts.result.samples}
    columns: tables.Columns[SampleExposure] = (
        tables.text("Sample", lambda each: short(each.sample_id)),
        tables.text(
            "Class", lambda each: facts.class_name(rows[each.sample_id]) if each.sample_id in rows else "unknown"
        ),
        tables.text(
            "Group",
            lambda each: short(each.group or "none", 24),
            shown=any(each.group is not None for each in study.samples),
        ),
        tables.column(
            "Protection: posterior error, lower end",
            lambda each: number_cell(each.protection, each.posterior_rmse.status if each.posterior_rmse else None),
        ),
        tables.share("Share of the average", lambda each: each.share_of_average),
        tables.number("Influence √l₁, upper end", lambda each: each.influence, missing="unknown"),
        tables.number(
            "Strongest attack's RMSE",
            lambda each: each.attack_rmse,
            missing="no result",
            shown=any(each.attack_rmse is not None for each in study.samples),
        ),
    )
    return [
        Subheading("Who is least protected"),
        Paragraph(text, lead=f"{finding}.", brief=bool(number_of)),
        tables.table(
            "least-protected",
            "The least protected samples, beside the average and what they can do to training",
            ranked[: max(_LISTED_SAMPLES, number_of)],
            columns,
            sortable=True,
            print_rows=_LISTED_SAMPLES,
            layout="compact",
        ),
    ]


def _influence_words(study: FairnessStudy) -> str:
    link = study.influence
    meaning = (
        "By the bound ‖change of the release‖ ≤ √l₁ ‖change of the input‖ (Zhang et al., NeurIPS 2023; first order), "
        "a small change of a sample with a large l₁, the largest eigenvalue of JᵀJ, can move training most"
    )
    if link.spearman is None:
        return f"{meaning}; whether these are the exposed samples can't be said ({link.note})."
    ends = f" ({interval(link.low, link.high)})".replace("-", "−") if link.low is not None else ""
    rho = f"{link.spearman:.2f}".replace("-", "−")
    if link.low is not None and link.low > 0:
        exposed = f"rank correlation of √l₁ with what is revealed {rho}{ends}"
        return f"{meaning}: these are also the more exposed ones, {exposed}."
    return f"{meaning}; that these are also the more exposed ones is not shown (rank correlation {rho}{ends})."


# Which sections of the report the study adds to.
PARTS = {"who-is-exposed": fairness_study_blocks}
