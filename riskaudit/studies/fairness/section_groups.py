"""Part of section 4: do classes, or groups of the user's own, differ, which ones and by how much."""

from __future__ import annotations

from collections.abc import Sequence

from riskaudit.document.blocks import Block, Cell, Column, Paragraph, Subheading, Table
from riskaudit.document.cells import SHORT_STATUS, count_cell, number_cell
from riskaudit.formatting import inside, interval, number, sentence, short, signed
from riskaudit.results.facts import Facts
from riskaudit.studies.fairness.record import ATTACK_RMSE, FairnessStudy, GroupComparison, GroupPair

_PRINTED_PAIRS = 6
_PRINTED_GROUPS = 20
_NOUNS = {"class": "classes", "group": "groups"}
# Upper ends of |Cliff's delta| (Romano et al. 2006).
_MAGNITUDES = ((0.147, "negligible"), (0.33, "small"), (0.474, "medium"))


def measure_title(facts: Facts, measure: str) -> str:
    """A measure's name for readers."""
    return "Strongest attack's RMSE" if measure == ATTACK_RMSE else facts.title(measure)


def comparison_blocks(facts: Facts, study: FairnessStudy, by: str) -> list[Block]:
    """What the tests say of classes or groups; effect sizes beside every p-value."""
    found = [one for one in study.comparisons if one.by == by]
    known = [one for one in found if any(group.median is not None for group in one.groups)]
    if not known:
        return []
    head, noun = known[0], _NOUNS[by]
    blocks: list[Block] = []
    if by == "group":
        blocks += [Subheading(f"Groups of {short(study.groups_name or 'the user', 60)} compared"), _groups(facts, head)]
    if len(head.groups) == 1:
        # Of a single class the table of classes says as much.
        return (
            [*blocks, Paragraph("All samples belong to one group, so there is nothing to compare.")] if blocks else []
        )
    lead = f"Do {noun} differ?"
    text = " ".join(_verdict(facts, one, noun) for one in _apart(known))
    if head.doubt:
        text = f"{text} {sentence(head.doubt)}"
    blocks.append(Paragraph(text, lead=lead))
    differing = [pair for pair in head.pairs if pair.differs]
    if differing:
        blocks.append(_pair_table(facts, head, differing, noun))
    return blocks


def _apart(comparisons: list[GroupComparison]) -> list[GroupComparison]:
    """Without those that say the same: revealed fraction and posterior error share their ranks under most priors."""
    kept: dict[tuple[int, str], GroupComparison] = {}
    for one in comparisons:
        test = one.kruskal_wallis
        said = test.note or "" if test.p_value is None else f"{test.p_value:.9g}"
        kept.setdefault((len(one.groups), said), one)
    return list(kept.values())


def _verdict(facts: Facts, one: GroupComparison, noun: str) -> str:
    title, test = inside(measure_title(facts, one.measure)), one.kruskal_wallis
    if test.p_value is None or one.differs is None:
        why = test.note or SHORT_STATUS[test.status]
        return f"For {title} that can't be tested ({why}), which is no sign that they are alike."
    size = f", ε² = {number(one.epsilon_squared)}" if one.epsilon_squared is not None else ""
    figures = f"(Kruskal-Wallis p = {number(test.p_value)}{size}{'; ' + test.note if test.note else ''})"
    if not one.differs:
        return f"No difference in {title} is shown {figures}; that is no proof that {noun} are alike."
    number_of = sum(pair.differs for pair in one.pairs)
    if not number_of:
        why = f" ({one.note})" if one.note else ""
        return (
            f"They differ in {title} {figures}, but no single pair can be told apart after Holm's correction{why}."
            f"{_largest(one)}"
        )
    against_rest = any(pair.second is None for pair in one.pairs)
    kind = f"{noun} differ from all others together" if against_rest else "pairs differ"
    return f"They differ in {title} {figures}: {number_of:,} of {len(one.pairs):,} {kind} after Holm's correction."


def _largest(one: GroupComparison) -> str:
    if not one.pairs:
        return ""
    pair = max(one.pairs, key=lambda pair: abs(pair.effect))
    return (
        f" The largest effect is that of {short(pair.first, 24)} against {_second(pair)}: Cliff's delta "
        f"{signed(pair.effect)}, {_magnitude(pair.effect)}."
    )


def _pair_table(facts: Facts, one: GroupComparison, pairs: Sequence[GroupPair], noun: str) -> Table:
    medians = {group.name: group.median for group in one.groups}
    worst = max(pairs, key=lambda pair: abs(pair.effect))
    title = inside(measure_title(facts, one.measure))
    return Table(
        f"{one.by}-pairs",
        f"{short(worst.first, 24)} and {_second(worst)} differ most in {title}: Cliff's delta {signed(worst.effect)} "
        f"({_magnitude(worst.effect)})",
        (
            Column("First"),
            Column("Second"),
            Column("Median of the first", True),
            Column("Median of the second", True),
            Column("Cliff's delta", True),
            Column("Size"),
            Column("p, corrected", True),
        ),
        tuple(
            (
                Cell(short(pair.first, 24)),
                Cell(_second(pair)),
                number_cell(medians.get(pair.first)),
                number_cell(medians.get(pair.second or ""), missing="all others"),
                Cell(signed(pair.effect), pair.effect),
                Cell(_magnitude(pair.effect)),
                number_cell(pair.p_adjusted),
            )
            for pair in pairs
        ),
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


def _groups(facts: Facts, one: GroupComparison) -> Table:
    title = inside(measure_title(facts, one.measure))
    first = one.groups[0]
    lead = "has the most exposed estimate" if one.doubt else "is the most exposed"
    finding = f"Group {short(first.name, 24)} {lead}: median {title} " + (
        number(first.median) if first.median is not None else "unknown"
    )
    return Table(
        "groups",
        finding if len(one.groups) > 1 else f"{measure_title(facts, one.measure)} of the only group",
        (
            Column("Group"),
            Column("Samples", True),
            Column("With a value", True),
            Column("Median", True),
            Column("Mean", True),
            Column("Interval of the mean (bootstrap)"),
            Column("Minimum", True),
            Column("Maximum", True),
        ),
        tuple(
            (
                Cell(short(group.name, 24)),
                count_cell(group.num_samples),
                count_cell((stat.num_samples or 0) if (stat := group.statistic) is not None else 0),
                number_cell(group.median, missing="not assessed"),
                number_cell(stat.mean if stat is not None else None, missing="not assessed"),
                Cell(interval(stat.low, stat.high) if stat is not None and stat.low is not None else "too few samples"),
                number_cell(stat.min if stat is not None else None, missing="not assessed"),
                number_cell(stat.max if stat is not None else None, missing="not assessed"),
            )
            for group in one.groups
        ),
        sortable=True,
        print_rows=_PRINTED_GROUPS,
        layout="compact",
    )
