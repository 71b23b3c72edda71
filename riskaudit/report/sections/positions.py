"""Part of section 3, for texts: which positions and tokens leave, without the words themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Cell, Figure, Paragraph, Subheading, Table
from riskaudit.document.plots import Reference, Span, SpanPlot
from riskaudit.formatting import count, given, number, percent, short
from riskaudit.results import Estimate, SampleRow, TokenPosition
from riskaudit.results.facts import Facts
from riskaudit.results.verdicts import attacker_of, tokens_of

# Positions of a figure, and rows of a table.
MOST_SPANS, MOST_ROWS = 40, 400


@dataclass(frozen=True)
class _Place:
    """One position of all texts that have it."""

    position: int
    recoveries: tuple[float, ...]
    highs: tuple[float, ...]
    revealed: tuple[float, ...]


def position_blocks(facts: Facts) -> list[Block]:
    """Recovery of tokens by position and by text; nothing where samples are no texts."""
    rows = [row for row in facts.result.samples if row.positions]
    if not rows:
        return []
    places = _places(rows)
    blocks: list[Block] = [Subheading("Tokens, position by position"), Paragraph(_how_to_read(facts))]
    if any(place.recoveries for place in places):
        blocks.append(_figure(facts, rows, places))
    else:
        blocks.append(_place_table(places))
    blocks.append(_text_table(facts, rows))
    blocks.append(_token_table(rows))
    return blocks


def _how_to_read(facts: Facts) -> str:
    text = facts.result.data.text
    others = ", and all other texts of its upload," if facts.is_joint else ""
    tried = ""
    if text is not None and text.untried:
        tried = (
            f" Of the {text.vocabulary:,} tokens of the vocabulary the {text.candidates:,} nearest were tried at each "
            "position: recovery is at most its upper end, its value is a prediction, and its lower end is 0."
        )
    elif text is not None:
        tried = f" All {text.vocabulary:,} tokens of the vocabulary were tried at each position."
    return (
        f"Token recovery is the probability that an attacker who knows all other tokens of a text{others} "
        f"tells which token stood at a position, by exact differences of what leaves.{tried} Positions are counted "
        "from 0; those of the tokenizer's own tokens are left out of averages. Levels of a text follow the riskier of "
        "token recovery and the revealed fraction."
    )


def _places(rows: Sequence[SampleRow]) -> list[_Place]:
    by_place: dict[int, list[TokenPosition]] = {}
    for row in rows:
        for each in row.positions or []:
            if not each.special:
                by_place.setdefault(each.position, []).append(each)
    return [
        _Place(
            place,
            tuple(_values(each.token_recovery for each in held)),
            tuple(high for each in held if each.token_recovery and (high := each.token_recovery.ends[1]) is not None),
            tuple(_values(each.revealed_fraction for each in held)),
        )
        for place, held in sorted(by_place.items())
    ]


def _values(estimates: object) -> list[float]:
    return [each.value for each in estimates if each is not None and each.value is not None]  # type: ignore[attr-defined]


def _figure(facts: Facts, rows: Sequence[SampleRow], places: Sequence[_Place]) -> Figure:
    high = facts.result.settings.thresholds.high
    recoveries = [
        each.token_recovery.value
        for row in rows
        for each in row.positions or []
        if not each.special and each.token_recovery is not None and each.token_recovery.value is not None
    ]
    told = sum(value > high for value in recoveries)
    shown = sorted((place for place in places if place.recoveries), key=lambda place: -fmean(place.recoveries))
    worst = shown[0]
    spans = tuple(
        Span(
            str(place.position),
            fmean(place.recoveries),
            None,
            None,
            min(place.recoveries),
            max(place.recoveries),
        )
        for place in shown[:MOST_SPANS]
    )
    return Figure(
        id="token-positions",
        title=(
            f"{told:,} of {count(len(recoveries), 'token')} {'is' if told == 1 else 'are'} told right with a "
            f"probability above {given(high)}; position {worst.position} is the most exposed "
            f"({percent(fmean(worst.recoveries))} on average)"
        ),
        alt=(
            f"Mean token recovery of {count(len(spans), 'position')}, most exposed on top, with the range over texts, "
            f"and a line at {given(high)}."
        ),
        plot=SpanPlot(
            "token recovery (0 = never told, 1 = always)",
            spans,
            (Reference(high, f"high: {given(high)}"),),
            (0.0, 1.0),
            "position",
        ),
        table=_place_table(places),
        caption="Points are means over the texts that have the position, lines reach from the least to the largest.",
    )


def _place_table(places: Sequence[_Place]) -> Table:
    columns: tables.Columns[_Place] = [
        tables.column("Position", lambda place: Cell(str(place.position), sort=place.position)),
        tables.column("Texts", lambda place: _count(max(len(place.recoveries), len(place.revealed)))),
        tables.column("Mean token recovery", lambda place: _mean(place.recoveries)),
        tables.column("Largest upper end", lambda place: _largest(place.highs)),
        tables.column("Mean revealed fraction", lambda place: _mean(place.revealed)),
        tables.column("Largest revealed fraction", lambda place: _largest(place.revealed)),
    ]
    return tables.table(
        "positions", "Positions over all texts", list(places), columns, layout="dense", sortable=True, print_rows=40
    )


def _text_table(facts: Facts, rows: Sequence[SampleRow]) -> Table:
    recovery = tokens_of(attacker_of(facts.result.release))
    columns: tables.Columns[SampleRow] = [
        tables.text("Text", lambda row: short(row.id)),
        tables.column("Tokens", lambda row: _count(len(row.positions or []))),
        tables.column("Token recovery", lambda row: _estimate(row.proxies.get(recovery))),
        tables.column("Most exposed position", _worst),
        tables.column("Noise for 50 % of every token at most", _noise),
    ]
    return tables.table(
        "text-tokens", "Tokens of every text", list(rows), columns, layout="dense", sortable=True, print_rows=40
    )


def _token_table(rows: Sequence[SampleRow]) -> Table:
    every = [(row, each) for row in rows for each in row.positions or []]
    has_words = any(each.token is not None for _, each in every)
    columns: tables.Columns[tuple[SampleRow, TokenPosition]] = [
        tables.text("Text", lambda pair: short(pair[0].id)),
        tables.column("Position", lambda pair: Cell(str(pair[1].position), sort=pair[1].position)),
        tables.text("Token", lambda pair: short(pair[1].token or "–"), shown=has_words),
        tables.text("Tokenizer's own", lambda pair: "yes" if pair[1].special else "no"),
        tables.column("Token recovery", lambda pair: _estimate(pair[1].token_recovery)),
        tables.column("Revealed fraction", lambda pair: _estimate(pair[1].revealed_fraction)),
    ]
    return tables.table(
        "tokens",
        "Every position of every text",
        every[:MOST_ROWS],
        columns,
        layout="dense",
        folded=True,
        sortable=True,
        left_out=max(0, len(every) - MOST_ROWS),
    )


def _count(value: int) -> Cell:
    return Cell(f"{value:,}", sort=value)


def _mean(values: Sequence[float]) -> Cell:
    return Cell(number(fmean(values)), sort=fmean(values)) if values else Cell("–")


def _largest(values: Sequence[float]) -> Cell:
    return Cell(number(max(values)), sort=max(values)) if values else Cell("–")


def _estimate(estimate: Estimate | None) -> Cell:
    if estimate is None or estimate.value is None:
        return Cell("–")
    detail = (
        ""
        if estimate.low is None or estimate.low == estimate.high
        else (f"{number(estimate.low)} to {number(estimate.high or 0.0)}")
    )
    return Cell(number(estimate.value), sort=estimate.value, detail=detail)


def _worst(row: SampleRow) -> Cell:
    known = [
        (each.token_recovery.value, each.position)
        for each in row.positions or []
        if not each.special and each.token_recovery is not None and each.token_recovery.value is not None
    ]
    if not known:
        return Cell("–")
    value, place = max(known, key=lambda pair: (pair[0], -pair[1]))
    return Cell(f"{place}", sort=value, detail=f"recovery {number(value)}")


def _noise(row: SampleRow) -> Cell:
    stds = [each.noise_std.get("0.5") for each in row.positions or [] if not each.special]
    known = [std for std in stds if std is not None]
    if not known or len(known) < len(stds):
        return Cell("–")
    return Cell(number(max(known)), sort=max(known))
