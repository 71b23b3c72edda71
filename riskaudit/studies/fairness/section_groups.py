"""Part of section 4: do classes, or groups of the user's own, differ, which ones and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Cell, Paragraph, Subheading, Table
from riskaudit.document.cells import SHORT_STATUS, ends_cell, number_cell
from riskaudit.formatting import inside, interval, number, percent, sentence, short, signed
from riskaudit.results import GroupStatistic
from riskaudit.results.facts import Facts
from riskaudit.studies.fairness.record import ATTACK_RMSE, FairnessStudy, GroupComparison, GroupPair, GroupSummary

_PRINTED_PAIRS = 6
_PRINTED_GROUPS = 20
_UNKNOWN = "not assessed"
_NOUNS = {"class": "classes", "group": "groups"}
# Upper ends of |Cliff's delta| (Romano et al. 2006).
_MAGNITUDES = ((0.147, "negligible"), (0.33, "small"), (0.474, "medium"))


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
        blocks += [Subheading(f"Groups of {short(study.groups_name or 'the user', 60)} compared"), _groups(facts, head)]
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


def _groups(facts: Facts, comparison: GroupComparison) -> Table:
    title = inside(measure_title(facts, comparison.measure))
    first = comparison.groups[0]
    lead = "has the most exposed estimate" if comparison.doubt else "is the most exposed"
    finding = f"Group {short(first.name, 24)} {lead}: median {title} " + (
        number(first.median) if first.median is not None else "unknown"
    )
    return group_table(
        "groups",
        finding if len(comparison.groups) > 1 else f"{measure_title(facts, comparison.measure)} of the only group",
        comparison.groups,
        "Group",
        sortable=True,
        print_rows=_PRINTED_GROUPS,
        layout="compact",
    )


def group_table(
    table_id: str, caption: str, groups: Sequence[GroupSummary], noun: str, **look: Unpack[tables.Look]
) -> Table:
    """Groups side by side: what one measure is in each of them; ``noun`` is what a group is called."""
    levels = {group.statistic.confidence for group in groups if group.statistic and group.statistic.low is not None}
    confidence = levels.pop() if len(levels) == 1 else None
    level = f", {percent(confidence)}" if confidence is not None else ""

    def statistic(title: str, value: Callable[[GroupStatistic], float | None]) -> tables.RowColumn[GroupSummary]:
        return tables.number(title, lambda group: value(group.statistic) if group.statistic else None, missing=_UNKNOWN)

    medians = any(group.median is not None for group in groups)
    columns: tables.Columns[GroupSummary] = (
        tables.text(noun, lambda group: short(group.name)),
        tables.count("Samples", lambda group: group.num_samples),
        tables.count("With a value", _num_valued),
        tables.number("Median", lambda group: group.median, missing=_UNKNOWN, shown=medians),
        tables.column("Mean", _mean_cell),
        tables.column(f"Interval of the mean (bootstrap{level})", _interval_cell, numeric=False),
        tables.column("Std", _std_cell, shown=not medians),
        statistic("Minimum", lambda values: values.min),
        statistic("Maximum", lambda values: values.max),
    )
    return tables.table(table_id, caption, groups, columns, **look)


def _num_valued(group: GroupSummary) -> int:
    if group.statistic is None:
        return 0
    return group.num_samples if group.statistic.num_samples is None else group.statistic.num_samples


def _mean_cell(group: GroupSummary) -> Cell:
    if group.statistic is None:
        return Cell(_UNKNOWN, tone="unknown")
    return ends_cell(group.statistic.mean, group.statistic.mean_low, group.statistic.mean_high)


def _interval_cell(group: GroupSummary) -> Cell:
    values = group.statistic
    if values is None or values.low is None:
        return Cell((values.note if values else None) or "too few samples", tone="unknown")
    return Cell(interval(values.low, values.high))


def _std_cell(group: GroupSummary) -> Cell:
    if group.statistic is None:
        return Cell(_UNKNOWN, tone="unknown")
    return number_cell(group.statistic.std, missing="too few samples")
