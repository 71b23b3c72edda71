"""Part of section 3 where attacks ran: lower end, prediction, strongest attack and prior-only guess on one axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Cell, Figure, Paragraph, Subheading, Table
from riskaudit.document.cells import estimate_cell
from riskaudit.document.plots import Corridor, CorridorPlot
from riskaudit.formatting import count, number, percent, short
from riskaudit.results import Estimate, SampleRow
from riskaudit.results.facts import Facts
from riskaudit.studies.verify.section.reading import (
    AttackedSample,
    AttackStudy,
    at_noise,
    attacked_cell,
    read_attack_study,
)

_DRAWN = 40
_NEAR = 1.1
# A linear axis hides errors that are this much smaller than the largest.
_LOGARITHMIC_BELOW = 0.03


@dataclass(frozen=True)
class _Corridor:
    """The corridor at one noise level; rows with the least predicted error first, those without one last."""

    study: AttackStudy
    level: float

    @cached_property
    def _lower_end(self) -> tuple[str, Callable[[SampleRow], float | None]]:
        """What the lower ends are, and each sample's: the strongest claim that some sample carries."""
        calibration = self.study.facts.result.calibration
        covered = f" ({percent(calibration.coverage)} of attacks inside)" if calibration is not None else ""
        proxy = self.study.predicted_proxy or "map_rmse"
        sources: tuple[tuple[str, Callable[[SampleRow], float | None]], ...] = (
            (f"calibrated lower end{covered}", self._calibrated),
            ("lower end of the 90\u00a0% predictive interval", self._predictive),
            (f"lower end of {self.study.facts.title(proxy)}", lambda row: self._predicted(row, proxy).low),
            ("I2F lower bound", lambda row: self._predicted(row, "i2f_lower_bound").value),
        )
        for title, source in sources:
            if any(source(row) is not None for row in self.study.facts.result.samples):
                return title, source
        return "lower end", sources[-1][1]

    def _predicted(self, row: SampleRow, proxy: str) -> Estimate:
        estimate = self.study.predicted(self.level, row.id, proxy)
        return Estimate(value=None, status="not_applicable") if estimate is None else estimate

    @property
    def _is_audited(self) -> bool:
        return self.study.facts.noise_std == self.level

    def _calibrated(self, row: SampleRow) -> float | None:
        prediction = self.study.predictions.get((self.level, row.id))
        intervals = (row.calibrated if self._is_audited else {}) | (prediction.calibrated if prediction else {})
        # The calibration's factors are those of MAP RMSE.
        return intervals["map_rmse"].low if "map_rmse" in intervals else None

    def _predictive(self, row: SampleRow) -> float | None:
        estimate = self.study.predicted(self.level, row.id, "predicted_rmse")
        estimate = row.predicted_rmse if estimate is None and self._is_audited else estimate
        return estimate.low if estimate is not None else None

    @property
    def low_title(self) -> str:
        return self._lower_end[0]

    @cached_property
    def rows(self) -> list[AttackedSample]:
        """Samples with a prediction or an attack."""
        rows = [
            replace(each, low=self._lower_end[1](each.row))
            for each in self.study.samples(self.level)
            if each.attacked is not None
            or (each.prediction is not None and (each.predicted is not None or each.prediction.assessed))
        ]

        def position(row: AttackedSample) -> tuple[bool, float]:
            return row.predicted is None, row.predicted if row.predicted is not None else (row.attacked or 0.0)

        return sorted(rows, key=position)

    def figure(self) -> Figure:
        """The corridor drawn, with its numbers."""
        drawn = self.rows[:_DRAWN]
        errors = [
            error
            for row in drawn
            for error in (row.low, row.predicted, row.attacked, row.prior_only)
            if error is not None
        ]
        cut = f" Only the {_DRAWN} most exposed of {len(self.rows):,} samples are drawn." * (len(self.rows) > _DRAWN)
        undefended = (
            " Nothing is predicted here: without noise theory has no error to give, and numbers at the reference noise "
            "only rank samples."
        ) * all(row.predicted is None for row in drawn)
        return Figure(
            id="corridor",
            title=self.finding(),
            alt=(
                f"Errors of {count(len(drawn), 'sample')} {at_noise(self.level)} on one axis: {self.low_title}, "
                "predicted, strongest attack, prior-only guess."
            ),
            plot=CorridorPlot(
                f"RMSE per coordinate {at_noise(self.level)} (data units)",
                (
                    self.low_title,
                    f"predicted ({self.study.predicted_title()})",
                    "strongest attack",
                    "guess of the prior mean",
                ),
                tuple(
                    Corridor(short(row.row.id, 14), row.low, row.predicted, row.attacked, row.prior_only)
                    for row in drawn
                ),
                logarithmic=0 < min(errors) < _LOGARITHMIC_BELOW * max(errors),
            ),
            table=self._table(),
            caption=(
                "Further left is worse: the attacker's reconstruction is nearer to the input. An attack that ends "
                "right of the guess learned nothing; one left of the lower end did better than foreseen. The strongest "
                f"attack is the best of those that an attacker can run.{cut}{undefended}"
            ),
        )

    def finding(self) -> str:
        """What attacks made of the predictions, in a sentence."""
        start = at_noise(self.level).capitalize()
        if self.study.record.control.status == "failed":
            return f"{start} the attacks say nothing: they failed their positive control"
        attacked = [(row.attacked, row) for row in self.rows if row.attacked is not None]
        if not attacked:
            return f"{start} no attack on these samples gave a result"
        parts = []
        pairs = [(error, row.predicted) for error, row in attacked if row.predicted is not None]
        if pairs:
            near = sum(error <= _NEAR * predicted for error, predicted in pairs)
            parts.append(
                f"came within 10\u00a0% of the predicted error, or below it, on {near:,} of {len(pairs):,} samples"
            )
        ends = [(error, row.low) for error, row in attacked if row.low is not None]
        if ends:
            below = sum(error < end for error, end in ends)
            name = self.low_title.split(" (", maxsplit=1)[0]
            parts.append(f"went below the {name} on {below:,}" if below else f"never went below the {name}")
        guesses = [(error, row.prior_only) for error, row in attacked if row.prior_only]
        if guesses:
            better = sum(error < guess for error, guess in guesses)
            parts.append(f"beat the prior-only guess on {better:,} of {len(guesses):,}")
        if not parts:
            parts.append(f"came to an RMSE of {number(min(error for error, _ in attacked))} at best")
        return f"{start} the strongest attack {', '.join(parts[:-1])}{' and ' if parts[1:] else ''}{parts[-1]}"

    def _table(self) -> Table:
        study = self.study
        bounded = any(row.low is not None for row in self.rows)
        # Where nothing is predicted there are no ratios.
        predicted = any(row.predicted is not None for row in self.rows)
        columns: tables.Columns[AttackedSample] = (
            tables.text("Sample", lambda row: short(row.row.id)),
            tables.number(
                self.low_title[0].upper() + self.low_title[1:],
                lambda row: row.low,
                missing="no interval",
                shown=bounded,
            ),
            tables.column(
                f"Predicted: {study.predicted_title()}", lambda row: estimate_cell(row.prediction), shown=predicted
            ),
            tables.column("Strongest attack", lambda row: attacked_cell(row.attacked, row.attack)),
            tables.column(
                "Attack",
                lambda row: Cell(study.attack_title(row.attack.attack)) if row.attack else Cell("none", tone="unknown"),
                numeric=False,
            ),
            tables.number("Prior-only guess", lambda row: row.prior_only, missing="not computed"),
            tables.number("Attack / predicted", _ratio, shown=predicted),
        )
        return tables.table(
            "corridor",
            f"RMSE per coordinate {at_noise(self.level)}, most exposed sample first",
            self.rows,
            columns,
            sortable=True,
            print_rows=_DRAWN,
            layout="compact",
        )


def _ratio(row: AttackedSample) -> float | None:
    return row.attacked / row.predicted if row.attacked is not None and row.predicted else None


def _corridor(facts: Facts) -> _Corridor | None:
    study = read_attack_study(facts)
    if study is None or study.audited_level is None:
        return None
    corridor = _Corridor(study, study.audited_level)
    return corridor if corridor.rows else None


def corridor_blocks(facts: Facts) -> list[Block]:
    """The corridor, or nothing where there is none."""
    corridor = _corridor(facts)
    if corridor is None:
        return []
    blocks: list[Block] = [Subheading("The risk corridor: predicted, attacked, guessed")]
    if corridor.study.record.control.status == "failed":
        text = (
            "They failed on an undefended release that must be reconstructible. Their errors below are no evidence "
            "that the data is safe: go by the prediction."
        )
        blocks.append(Paragraph(text, lead="The attacks are broken.", brief=True))
    return [*blocks, corridor.figure()]


def attacked_finding(facts: Facts) -> str | None:
    """The corridor's finding in a sentence, for the verdict; None where there is no corridor."""
    corridor = _corridor(facts)
    return None if corridor is None else corridor.finding()
