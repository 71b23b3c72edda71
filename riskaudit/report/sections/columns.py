"""Of a table: which columns are exposed, in their own units; names of columns, never their values."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Cell, Figure, Paragraph, Subheading, Table
from riskaudit.document.cells import STATUS_MARKS, STATUS_WORDS, tally
from riskaudit.document.plots import Dot, DotPlot, Reference
from riskaudit.formatting import count, given, number, percent, sentence, short
from riskaudit.results import Estimate, SampleRow, Status
from riskaudit.results.facts import Facts
from riskaudit.results.tables import ColumnInfo, ColumnRisk
from riskaudit.results.verdicts import most_revealed, verdict

# Columns that the figure draws.
MOST_DRAWN = 20
WORDS = {"number": "number", "category": "category", "boolean": "true or false"}


@dataclass
class ColumnExposure:
    """One column over all samples.

    Attributes:
        name: of the column.
        info: what the encoding says of it; None of what says that another column's value is missing.
        risks: of the samples, with their places.
    """

    name: str
    info: ColumnInfo | None
    risks: list[tuple[int, ColumnRisk]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """In words."""
        return "value is missing" if self.info is None else WORDS[self.info.kind]

    @property
    def is_number(self) -> bool:
        """Whether its risk is an error."""
        return bool(self.risks) and self.risks[0][1].kind == "number"

    @property
    def known(self) -> list[tuple[int, ColumnRisk]]:
        """Those with a number."""
        return [(place, risk) for place, risk in self.risks if risk.revealed.assessed]

    @property
    def worst(self) -> tuple[int, ColumnRisk] | None:
        """The most exposed sample's place and risk."""
        return max(self.known, key=lambda pair: (_high(pair[1].revealed), -pair[0]), default=None)

    @property
    def middle(self) -> float | None:
        """The median sample's share that is revealed, as upper ends."""
        return median(_high(risk.revealed) for _, risk in self.known) if self.known else None

    @property
    def statuses(self) -> list[Status]:
        """Of all samples."""
        return [risk.estimate.status for _, risk in self.risks]


def _high(estimate: Estimate) -> float:
    high = estimate.ends[1]
    return 1.0 if high is None else high


def exposures(facts: Facts) -> list[ColumnExposure]:
    """The columns of the audit, the most exposed first, those without a number before all: they may be anything."""
    encoding = facts.result.data.encoding
    if encoding is None:
        return []
    infos, found = {column.name: column for column in encoding.columns}, dict[str, ColumnExposure]()
    for place, row in enumerate(facts.result.samples):
        for name, risk in row.columns.items():
            found.setdefault(name, ColumnExposure(name, infos.get(name))).risks.append((place, risk))

    def key(each: ColumnExposure) -> tuple[bool, float, float]:
        worst = each.worst
        return (worst is None, 0.0 if worst is None else _high(worst[1].revealed), each.middle or 0.0)

    return sorted(found.values(), key=key, reverse=True)


def columns_sentence(facts: Facts, columns: list[ColumnExposure]) -> str:
    """The most exposed column in a sentence."""
    first = columns[0]
    if first.worst is None:
        return f"Of the column {short(first.name, 30)}, and maybe others, nothing could be assessed."
    place, risk = first.worst
    return (
        f"Of a table each column counts: the most exposed is {short(first.name, 30)}, {_of_column(risk)} revealed in "
        f"sample {short(facts.result.samples[place].id, 16)}."
    )


def _of_column(risk: ColumnRisk) -> str:
    high = percent(_high(risk.revealed))
    return high if risk.revealed.status == "exact" else f"at most {high}"


def column_words(facts: Facts, row: SampleRow) -> str:
    """The most revealed column of a sample, with the upper end of what is."""
    if not row.columns:
        return "not assessed"
    most = most_revealed(row.columns.values())
    name = max(row.columns, key=lambda each: _high(row.columns[each].revealed))
    return short(name, 24) + ("" if most is None else f", {percent(most)}")


def column_blocks(facts: Facts) -> list[Block]:
    """Columns, worst first; nothing of inputs that are no table by an encoding."""
    columns = exposures(facts)
    if not columns:
        return []
    return [
        Subheading("Column by column"),
        Paragraph(_how_to_read(facts)),
        _figure(facts, columns),
        column_table(facts, columns),
    ]


def column_table(facts: Facts, columns: list[ColumnExposure]) -> Table:
    """All columns in their own units."""
    note = "The upper end counts where an interval is known. Units are those of the encoding."
    if not facts.result.release.defended:
        note += " All at the reference noise: without it, assume full disclosure."
    reasons = sorted({risk.reason for each in columns for _, risk in each.risks if risk.reason})
    return tables.table(
        "columns",
        f"Columns, most exposed first ({count(facts.num_samples, 'sample')})",
        columns,
        _table_columns(facts),
        sortable=True,
        layout="fitted",
        note=" ".join([note, *map(sentence, reasons)]),
    )


def _how_to_read(facts: Facts) -> str:
    others = "all other samples of the upload, and " if facts.is_joint else ""
    return (
        "A number's risk is the error that is left to an attacker, in the column's own units, beside that of a guess "
        "at the column's mean; a category's the probability that an attacker who knows "
        f"{others}everything else of the sample picks the right one, beside one over the number of categories, which "
        "is a guess. The share revealed is how much of the way from guessing to certainty is gone. Verdicts and limits "
        "go by the most revealed column, however little the mean over all inputs says."
    )


def _figure(facts: Facts, columns: list[ColumnExposure]) -> Figure:
    limits = facts.result.settings.thresholds
    high = [each for each in columns if each.worst is None or _high(each.worst[1].revealed) > limits.high]
    unknown = sum(each.worst is None for each in columns)
    title = f"{len(high):,} of {count(len(columns), 'column')} {'is' if len(high) == 1 else 'are'} revealed beyond "
    title += f"{percent(limits.high)} in the most exposed sample"
    title += f", {unknown:,} of them not assessed" if unknown else _worst_words(columns[0])
    return Figure(
        id="column-exposure",
        title=title,
        alt=(
            f"Dot plot of how much of each of {count(len(columns), 'column')} is revealed in the most exposed sample, "
            "the most revealed on top, with lines at the medium and high levels."
        ),
        plot=DotPlot(
            "revealed share of the column, most exposed sample (0 = nothing, 1 = all)",
            tuple(_dot(facts, each) for each in columns[:MOST_DRAWN]),
            (
                Reference(limits.medium, f"medium: {given(limits.medium)}"),
                Reference(limits.high, f"high: {given(limits.high)}"),
            ),
            (0.0, 1.0),
            "column",
        ),
        table=tables.table(
            "column-shares",
            "What is revealed of each column",
            columns,
            (
                tables.text("Column", lambda each: short(each.name, 30)),
                tables.column("Most exposed sample", _revealed_cell),
                tables.share("Median sample, upper end", lambda each: each.middle, missing="not assessed"),
            ),
        ),
        caption=(f"The {MOST_DRAWN} most exposed of {len(columns)} columns." if len(columns) > MOST_DRAWN else ""),
    )


def _worst_words(exposure: ColumnExposure) -> str:
    worst = exposure.worst
    if worst is None:
        return ""
    _, risk = worst
    if risk.kind == "number":
        unit = f" {exposure.info.unit}" if exposure.info is not None and exposure.info.unit else ""
        value = risk.estimate.value
        left = "" if value is None else f"; the worst, {short(exposure.name, 30)}, is known to {number(value)}{unit}"
        return left and f"{left}, where a guess leaves {number(risk.guess)}{unit}"
    return (
        f"; the worst, {short(exposure.name, 30)}, is recognised with a probability of {_probability(risk.estimate)}, "
        f"where a guess has {percent(risk.guess)}"
    )


def _probability(estimate: Estimate) -> str:
    low, high = estimate.ends
    if estimate.value is not None:
        return percent(estimate.value)
    return f"{percent(low or 0.0)} to {percent(1.0 if high is None else high)}"


def _dot(facts: Facts, exposure: ColumnExposure) -> Dot:
    worst = exposure.worst
    if worst is None:
        return Dot(short(exposure.name, 22), None, None, None, "not_assessed", certain=False)
    revealed = worst[1].revealed
    level = verdict(revealed, facts.result.settings.thresholds, facts.result.release.defended)
    return Dot(short(exposure.name, 22), revealed.value, revealed.low, revealed.high, level)


def _table_columns(facts: Facts) -> tables.Columns[ColumnExposure]:
    rows = facts.result.samples

    def worst_id(each: ColumnExposure) -> str:
        return "none" if each.worst is None else short(rows[each.worst[0]].id, 16)

    return (
        tables.text("Column", lambda each: short(each.name, 30)),
        tables.text("Kind", lambda each: each.kind),
        tables.column("Attacker's error or success, worst", _risk_cell),
        tables.column("Guess without the release", _guess_cell),
        tables.column("Revealed, worst", _revealed_cell),
        tables.share("Revealed, median", lambda each: each.middle, missing="not assessed"),
        tables.text("Most exposed sample", worst_id),
        tables.text("Status of the samples", lambda each: tally(each.statuses)),
    )


def _risk_cell(exposure: ColumnExposure) -> Cell:
    worst = exposure.worst
    if worst is None:
        return Cell("not assessed", tone="unknown")
    risk = worst[1]
    mark, word = STATUS_MARKS[risk.estimate.status], STATUS_WORDS[risk.estimate.status]
    if risk.kind == "number":
        value = risk.estimate.value
        return Cell("unknown" if value is None else f"{number(value)}{_unit(exposure)}", value, mark, word)
    low, high = (percent(end or 0.0) for end in risk.estimate.ends)
    shown = _probability(risk.estimate)
    # Ends that look alike say nothing.
    detail = "" if risk.estimate.value is None or low == high == shown else f"{low} to {high}"
    return Cell(f"right with {shown}", risk.estimate.value, mark, word, detail)


def _guess_cell(exposure: ColumnExposure) -> Cell:
    worst = exposure.worst
    if worst is None:
        return Cell("not assessed", tone="unknown")
    risk = worst[1]
    if risk.kind == "number":
        return Cell(f"{number(risk.guess)}{_unit(exposure)}", risk.guess)
    return Cell(f"right with {percent(risk.guess)}", risk.guess)


def _revealed_cell(exposure: ColumnExposure) -> Cell:
    worst = exposure.worst
    if worst is None:
        return Cell("not assessed", tone="unknown")
    revealed = worst[1].revealed
    mark, word = STATUS_MARKS[revealed.status], STATUS_WORDS[revealed.status]
    return Cell(_of_column(worst[1]), _high(revealed), mark, word)


def _unit(exposure: ColumnExposure) -> str:
    return f"\u00a0{exposure.info.unit}" if exposure.info is not None and exposure.info.unit else ""
