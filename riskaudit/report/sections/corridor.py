"""Part of section 3 where attacks ran: lower end, prediction, strongest attack and prior-only guess on one axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from riskaudit.document.blocks import Block, Cell, Column, Figure, Paragraph, Subheading, Table
from riskaudit.document.cells import attacked_cell, estimate_cell, number_cell
from riskaudit.document.plots import Corridor, CorridorPlot
from riskaudit.formatting import count, number, percent, short
from riskaudit.report.attack_study import AttackStudy, at_noise, read_attack_study
from riskaudit.results import AttackRow, Estimate, SampleRow
from riskaudit.results.facts import Facts

_DRAWN = 40
_NEAR = 1.1
# A linear axis hides errors that are this much smaller than the largest.
_LOGARITHMIC_BELOW = 0.03


@dataclass(frozen=True)
class _Row:
    """One sample of the corridor: errors in data units, None where unknown."""

    sample: str
    low: float | None
    predicted: Estimate | None
    attacked: float | None
    attack: AttackRow | None
    prior_only: float | None

    @property
    def value(self) -> float | None:
        return self.predicted.value if self.predicted is not None else None


def corridor_blocks(facts: Facts) -> tuple[Block, ...]:
    """The corridor at the audit's own noise level, or nothing where no attacks ran."""
    found = read_attack_study(facts)
    if found is None or found.own_level is None:
        return ()
    low_title, low = _lower_end(found, found.own_level)
    rows = _rows(found, found.own_level, low)
    if not rows:
        return ()
    heading = Subheading("The risk corridor: predicted, attacked, guessed")
    warning: list[Block] = []
    if found.study.control.status == "failed":
        text = (
            "They failed on an undefended release that must be reconstructible. Their errors below are no evidence "
            "that the data is safe: go by the prediction."
        )
        warning.append(Paragraph(text, lead="The attacks are broken.", brief=True))
    return (heading, *warning, _figure(found, found.own_level, rows, low_title))


def attacked_finding(facts: Facts) -> str | None:
    """The corridor's finding in a sentence, for the verdict; None where no attacks ran at the audit's own noise."""
    found = read_attack_study(facts)
    if found is None or found.own_level is None:
        return None
    low_title, low = _lower_end(found, found.own_level)
    rows = _rows(found, found.own_level, low)
    return _finding(found, found.own_level, rows, low_title) if rows else None


def _lower_end(study: AttackStudy, level: float) -> tuple[str, Callable[[SampleRow], float | None]]:
    """What the lower ends are, and each sample's: the strongest claim that some sample carries."""
    own = study.facts.noise_std == level
    calibration = study.facts.result.calibration
    covered = f" ({percent(calibration.coverage)} of attacks inside)" if calibration is not None else ""
    proxy = study.predicted_proxy or "map_rmse"

    def calibrated(row: SampleRow) -> float | None:
        prediction = study.predictions.get((level, row.id))
        known = (row.calibrated if own else {}) | (prediction.calibrated if prediction else {})
        # The calibration's factors are those of MAP RMSE.
        return known["map_rmse"].low if "map_rmse" in known else None

    def predictive(row: SampleRow) -> float | None:
        estimate = study.predicted(level, row.id, "predicted_rmse")
        estimate = row.predicted_rmse if estimate is None and own else estimate
        return estimate.low if estimate is not None else None

    def computed(row: SampleRow) -> float | None:
        estimate = study.predicted(level, row.id, proxy)
        return estimate.low if estimate is not None else None

    def bound(row: SampleRow) -> float | None:
        estimate = study.predicted(level, row.id, "i2f_lower_bound")
        return estimate.value if estimate is not None else None

    sources: tuple[tuple[str, Callable[[SampleRow], float | None]], ...] = (
        (f"calibrated lower end{covered}", calibrated),
        ("lower end of the 90\u00a0% predictive interval", predictive),
        (f"lower end of {study.facts.title(proxy)}", computed),
        ("I2F lower bound", bound),
    )
    for title, source in sources:
        if any(source(row) is not None for row in study.facts.result.samples):
            return title, source
    return "lower end", bound


def _rows(study: AttackStudy, level: float, low: Callable[[SampleRow], float | None]) -> tuple[_Row, ...]:
    """Samples with a prediction or an attack, the least predicted error first, those without one last."""
    rows = []
    for sample in study.facts.result.samples:
        attacked, attack = study.best.get((level, sample.id), (None, None))
        predicted = study.predicted(level, sample.id)
        if attacked is None and (predicted is None or not (predicted.value is not None or predicted.assessed)):
            continue
        rows.append(_Row(sample.id, low(sample), predicted, attacked, attack, study.prior_only.get(sample.id)))

    def key(row: _Row) -> tuple[bool, float]:
        return row.value is None, row.value if row.value is not None else (row.attacked or 0.0)

    return tuple(sorted(rows, key=key))


def _figure(study: AttackStudy, level: float, rows: tuple[_Row, ...], low_title: str) -> Figure:
    drawn = rows[:_DRAWN]
    positive = [
        error for row in drawn for error in (row.low, row.value, row.attacked, row.prior_only) if error is not None
    ]
    logarithmic = min(positive) > 0 and min(positive) < _LOGARITHMIC_BELOW * max(positive)
    predicted = study.predicted_title()
    cut = f" Only the {_DRAWN} most exposed of {len(rows):,} samples are drawn." if len(drawn) < len(rows) else ""
    undefended = (
        " Nothing is predicted here: without noise theory has no error to give, and numbers at the reference noise "
        "only rank samples."
        if all(row.value is None for row in drawn)
        else ""
    )
    return Figure(
        id="corridor",
        title=_finding(study, level, rows, low_title),
        alt=(
            f"Errors of {count(len(drawn), 'sample')} {at_noise(level)} on one axis: {low_title}, predicted, "
            "strongest attack, prior-only guess."
        ),
        plot=CorridorPlot(
            f"RMSE per coordinate {at_noise(level)} (data units)",
            (low_title, f"predicted ({predicted})", "strongest attack", "guess of the prior mean"),
            tuple(Corridor(short(row.sample, 14), row.low, row.value, row.attacked, row.prior_only) for row in drawn),
            logarithmic,
        ),
        table=_table(study, level, rows, low_title),
        caption=(
            "Further left is worse: the attacker's reconstruction is nearer to the input. An attack that ends right of "
            "the guess learned nothing; one left of the lower end did better than foreseen. The strongest attack is "
            f"the best of those that an attacker can run.{cut}{undefended}"
        ),
    )


def _finding(study: AttackStudy, level: float, rows: tuple[_Row, ...], low_title: str) -> str:
    attacked = [row for row in rows if row.attacked is not None]
    at = at_noise(level).capitalize()
    if study.study.control.status == "failed":
        return f"{at} the attacks say nothing: they failed their positive control"
    if not attacked:
        return f"{at} no attack on these samples gave a result"
    parts = []
    pairs = [(row.attacked, row.value) for row in attacked if row.attacked is not None and row.value is not None]
    if pairs:
        near = sum(error <= _NEAR * value for error, value in pairs)
        parts.append(
            f"came within 10\u00a0% of the predicted error, or below it, on {near:,} of {len(pairs):,} samples"
        )
    ends = [(row.attacked, row.low) for row in attacked if row.attacked is not None and row.low is not None]
    if ends:
        below = sum(error < end for error, end in ends)
        name = low_title.split(" (", maxsplit=1)[0]
        parts.append(f"went below the {name} on {below:,}" if below else f"never went below the {name}")
    guesses = [(row.attacked, row.prior_only) for row in attacked if row.attacked is not None and row.prior_only]
    if guesses:
        better = sum(error < guess for error, guess in guesses)
        parts.append(f"beat the prior-only guess on {better:,} of {len(guesses):,}")
    if not parts:
        worst = min(row.attacked for row in attacked if row.attacked is not None)
        parts.append(f"came to an RMSE of {number(worst)} at best")
    return f"{at} the strongest attack {', '.join(parts[:-1])}{' and ' if parts[1:] else ''}{parts[-1]}"


def _table(study: AttackStudy, level: float, rows: tuple[_Row, ...], low_title: str) -> Table:
    columns = (
        Column("Sample"),
        Column(low_title[0].upper() + low_title[1:], True),
        Column(f"Predicted: {study.predicted_title()}", True),
        Column("Strongest attack", True),
        Column("Attack"),
        Column("Prior-only guess", True),
        Column("Attack / predicted", True),
    )
    # Where nothing is predicted, neither ends nor ratios exist.
    empty = {
        place
        for place, known in ((1, [row.low for row in rows]), (2, [row.value for row in rows]))
        if all(value is None for value in known)
    }
    empty |= {6} if 2 in empty else set()
    kept = [place for place in range(len(columns)) if place not in empty]
    cells = [_cells(study, row) for row in rows]
    return Table(
        "corridor",
        f"RMSE per coordinate {at_noise(level)}, most exposed sample first",
        tuple(columns[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in cells),
        sortable=True,
        print_rows=_DRAWN,
        layout="compact",
    )


def _cells(study: AttackStudy, row: _Row) -> tuple[Cell, ...]:
    ratio = row.attacked / row.value if row.attacked is not None and row.value else None
    attack = row.attack
    return (
        Cell(short(row.sample)),
        number_cell(row.low, missing="no interval"),
        estimate_cell(row.predicted),
        attacked_cell(row.attacked, attack.status if attack is not None else None, missing="no result"),
        Cell(study.attack_title(attack.attack)) if attack is not None else Cell("none", tone="unknown"),
        number_cell(row.prior_only, missing="not computed"),
        number_cell(ratio),
    )
