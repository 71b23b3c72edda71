"""Parts where ``studies.directions`` is: the spectrum, perturbations and layers in section 6, shaped noise in 5."""

from __future__ import annotations

import math
from statistics import median

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Bullets, Callout, Cell, Figure, Subheading, Table
from riskaudit.document.cells import number_cell, tally
from riskaudit.document.plots import Curve, CurvePlot, Panel, PanelPlot, Span, SpanPlot
from riskaudit.formatting import count, interval, number, percent, sentence, short
from riskaudit.results.facts import Facts
from riskaudit.statistics.summaries import of_known
from riskaudit.studies.directions.record import (
    DirectionAgreement,
    DirectionRow,
    DirectionsStudy,
    LayerSummary,
    SpectrumRow,
)
from riskaudit.studies.directions.section_shapes import shaping_blocks

_SHOWN_LAYERS = 12
_PRINTED_POINTS = 8
# Slopes this far from 1 are as theory says.
_SLOPE_TOLERANCE = 0.1


def directions_blocks(facts: Facts) -> list[Block]:
    """The part of section 6."""
    study = facts.result.studies.get(DirectionsStudy)
    if study is None:
        return []
    blocks: list[Block] = [Subheading("Directions and layers")]
    blocks.append(_spectrum_figure(study) or _ritz_table(study))
    blocks.append(_direction_table(study))
    scatter = _error_figure(study)
    blocks += [scatter] if scatter is not None else []
    if study.attacks:
        blocks.append(
            tables.table(
                "direction-agreement",
                "Directions: predictions against attacks",
                study.agreement,
                _AGREEMENT_COLUMNS,
                note="Intervals at 95 % resample whole samples. A slope of 1 and a ratio of 1 are what theory says "
                "to first order.",
                layout="compact",
            )
        )
    else:
        text = "No attack checked these predictions; riskaudit study directions --attacks does."
        blocks.append(Callout("Directions: not attacked", (text,), "unknown"))
    layers = _layer_figure(study)
    if layers is not None:
        blocks.append(layers)
    else:
        reason = sentence(study.layers_reason or "no sample could be taken apart")
        blocks += [Callout("What each layer reveals: not assessed", (reason,), "unknown"), _layer_table(study)]
    if study.notes:
        blocks.append(Bullets(tuple(sentence(note) for note in study.notes), lead="Notes of the directions study."))
    return blocks


def _spectrum_figure(study: DirectionsStudy) -> Figure | None:
    spectra = [row for row in study.spectra if row.status == "exact" and row.spread is not None]
    if not spectra:
        return None
    columns = [[row.values[number] for row in spectra] for number in range(len(study.quantile_shares))]
    spreads = [row.spread for row in spectra if row.spread is not None]
    ranks = [row.effective_rank for row in spectra if row.effective_rank is not None]
    # A logarithm needs something above zero.
    shown = [(share, column) for share, column in zip(study.quantile_shares, columns, strict=True) if min(column) > 0]
    decades = f"{math.log10(median(spreads)):.1f}"
    missing = len(study.spectra) - len(spectra)
    entropies = [row.entropy_rank for row in spectra if row.entropy_rank is not None]
    note = (
        f"Spread over the smallest eigenvalue above rounding: median {number(median(spreads))}. Effective rank "
        f"{number(median(ranks))} (by entropy {number(median(entropies))}) of {study.dimension:,}, medians."
    )
    if missing:
        note += f" {count(missing, 'sample')} without all eigenvalues left out."
    return Figure(
        id="spectrum",
        title=f"The release hides some directions {decades} decades better than others: eigenvalues of H",
        alt=f"Median, smallest and largest eigenvalue over {count(len(spectra), 'sample')}, rising along the spectrum.",
        plot=CurvePlot(
            "place in the spectrum (0 = smallest eigenvalue)",
            "log₁₀ of the eigenvalue",
            tuple(share for share, _ in shown),
            tuple(
                Curve(label, tuple(math.log10(pick(column)) for _, column in shown))
                for label, pick in (("largest sample", max), ("median sample", median), ("smallest sample", min))
            ),
            x_scale="linear",
        ),
        table=tables.table(
            "spectrum-table",
            "Eigenvalues of H = JᵀJ over the samples",
            list(zip(study.quantile_shares, columns, strict=True)),
            _SPECTRUM_COLUMNS,
            note=note,
            layout="halved",
        ),
        caption="H = JᵀJ of one sample's release; an attacker's squared error along an eigenvector goes as 1 / l.",
    )


_SPECTRUM_COLUMNS: tables.Columns[tuple[float, list[float]]] = (
    tables.setting("Place in the spectrum", lambda row: row[0]),
    tables.number("Median", lambda row: median(row[1])),
    tables.number("Smallest sample", lambda row: min(row[1])),
    tables.number("Largest sample", lambda row: max(row[1])),
)


def _ritz_table(study: DirectionsStudy) -> Table:
    columns: tables.Columns[SpectrumRow] = (
        tables.text("Sample", lambda row: short(row.sample_id)),
        tables.number("Largest", lambda row: row.largest, missing="not known"),
        tables.count("Converged Ritz values", lambda row: row.num_known),
    )
    reasons = dict.fromkeys(sentence(row.reason) for row in study.spectra if row.reason)
    return tables.table(
        "spectrum-table",
        "Largest eigenvalues of H = JᵀJ; the others are not known",
        study.spectra,
        columns,
        note=" ".join(list(reasons)[:2]),
        layout="compact",
        print_rows=8,
    )


def _direction_table(study: DirectionsStudy) -> Table:
    by_direction: dict[str, list[DirectionRow]] = {}
    for row in study.directions:
        by_direction.setdefault(row.direction, []).append(row)

    def attacked(name: str) -> tables.RowColumn[list[DirectionRow]]:
        title = f"{_attack_title(name)} RMSE"
        return tables.number(
            title, lambda rows: of_known(median, (row.attacked.get(name) for row in rows)), "median", missing="not run"
        )

    columns: tables.Columns[list[DirectionRow]] = (
        tables.text("Direction", lambda rows: _direction_title(rows[0].direction, study)),
        tables.number(
            "Eigenvalue", lambda rows: of_known(median, (row.eigenvalue for row in rows)), "median", missing="none"
        ),
        tables.number(
            "Predicted RMSE",
            lambda rows: of_known(median, (row.predicted_rmse for row in rows)),
            "median",
            missing="no value",
        ),
        *(attacked(name) for name in study.attacks),
        tables.column("Status of the predictions", _prediction_status, numeric=False),
    )
    return tables.table(
        "directions",
        f"Perturbations of norm {number(study.norm)} on the release, and the error that they force",
        by_direction.values(),
        columns,
        note="For an attacker without a prior, to first order.",
        layout="compact",
    )


def _prediction_status(rows: list[DirectionRow]) -> Cell:
    reasons = (short(row.reason, 100) for row in rows if row.reason and row.predicted_rmse is None)
    return Cell(tally(row.status for row in rows), detail=next(reasons, ""))


def _direction_title(name: str, study: DirectionsStudy) -> str:
    titles = {
        "largest": "Largest singular direction",
        "smallest": "Smallest singular direction",
        "random": "Random within the range of J",
        "pruning": f"Pruning {percent(study.prune_ratio)} (its direction)",
        "noise": "Isotropic noise",
    }
    return titles.get(name, short(name, 40).capitalize())


def _attack_title(name: str) -> str:
    return f"{short(name, 24)} (oracle start)" if name == "local" else short(name, 24)


def _error_figure(study: DirectionsStudy) -> Figure | None:
    panels, values = [], []
    for attack in study.attacks:
        points = _errors([row for row in study.directions if row.eigenvalue is not None], attack)
        apart = _errors([row for row in study.directions if row.eigenvalue is None], attack)
        if points or apart:
            panels.append(Panel(_attack_title(attack), tuple(points), tuple(apart)))
            values += [value for pair in points + apart for value in pair]
    if not values:
        return None
    return Figure(
        id="error-over-eigenvalue",
        title=_slope_finding(study.agreement),
        alt=f"RMSE of {count(len(panels), 'attack')} against c / √(l d), both logarithmic, and slope 1.",
        plot=PanelPlot(
            "predicted RMSE, c / √(l d): its square grows with 1 / l",
            "RMSE of the attack",
            tuple(panels),
            "singular directions",
            "other directions",
            "slope 1",
            True,
            (min(values) / 1.5, max(values) * 1.5),
        ),
        table=_points_table(study),
        caption="Each point is one perturbation of one sample; c is the norm of the perturbation.",
    )


def _errors(rows: list[DirectionRow], attack: str) -> list[tuple[float, float]]:
    pairs = [(row.predicted_rmse, row.attacked.get(attack)) for row in rows]
    return [(predicted, error) for predicted, error in pairs if predicted and error]


def _points_table(study: DirectionsStudy) -> Table:
    def attacked(name: str) -> tables.RowColumn[DirectionRow]:
        return tables.number(f"{_attack_title(name)} RMSE", lambda row: row.attacked.get(name), missing="no result")

    columns: tables.Columns[DirectionRow] = (
        tables.text("Sample", lambda row: short(row.sample_id)),
        tables.text("Direction", lambda row: _direction_title(row.direction, study)),
        tables.number("Eigenvalue", lambda row: row.eigenvalue, missing="none"),
        tables.column("Predicted RMSE", lambda row: number_cell(row.predicted_rmse, row.status, missing="no value")),
        *(attacked(name) for name in study.attacks),
    )
    return tables.table(
        "direction-points",
        "Every perturbation",
        study.directions,
        columns,
        sortable=True,
        layout="compact",
        folded=True,
        print_rows=_PRINTED_POINTS,
    )


def _slope_finding(rows: list[DirectionAgreement]) -> str:
    best = next((row for row in rows if row.slope is not None), None)
    if best is None or best.slope is None:
        return "Attack errors along singular directions beside their predictions"
    ends = f" ({interval(best.slope_low, best.slope_high)})" if best.slope_low is not None else ""
    holds = abs(best.slope - 1) <= _SLOPE_TOLERANCE
    start = "The attacker's squared error grows with 1 / l as predicted"
    start = start if holds else "The attacker's squared error departs from 1 / l"
    return f"{start}: slope {number(best.slope)}{ends}, {_attack_title(best.attack)}"


_AGREEMENT_COLUMNS: tables.Columns[DirectionAgreement] = (
    tables.column(
        "Attack",
        lambda row: Cell(_attack_title(row.attack), detail=sentence(row.note) if row.note else ""),
        numeric=False,
    ),
    tables.count("Samples", lambda row: row.num_samples),
    tables.count("Pairs", lambda row: row.num_pairs),
    tables.number("Decades of l", lambda row: row.decades, missing="none"),
    tables.column(
        "Spearman of 1 / l and MSE",
        lambda row: Cell(
            "none" if row.spearman is None else f"{row.spearman:.3f}".replace("-", "−"),
            row.spearman,
            detail=interval(row.spearman_low, row.spearman_high),
        ),
    ),
    tables.column(
        "Slope of log MSE over log 1 / l",
        lambda row: Cell(
            "none" if row.slope is None else number(row.slope),
            row.slope,
            detail=interval(row.slope_low, row.slope_high),
        ),
    ),
    tables.number(
        "Attack over predicted RMSE", lambda row: row.tightness_median, "median, all directions", missing="none"
    ),
)


def _layer_figure(study: DirectionsStudy) -> Figure | None:
    revealing = sorted(
        (row for row in study.layers if row.revealed is not None), key=lambda row: row.revealed or 0.0, reverse=True
    )
    if not revealing:
        return None
    top = revealing[0]
    shown = revealing[:_SHOWN_LAYERS]
    without = f"{percent(top.revealed_without)} without it" if top.revealed_without is not None else ""
    more = f" The {len(shown)} most revealing of {len(revealing)} layers." if len(revealing) > len(shown) else ""
    return Figure(
        id="layers",
        title=f"The gradient of {short(top.layer, 32)} alone reveals {percent(top.revealed or 0.0)}; {without}",
        alt=f"Mean revealed fraction of {count(len(shown), 'layer')} alone, most revealing first, with the range.",
        plot=SpanPlot(
            "revealed fraction from this layer's gradient alone",
            tuple(
                Span(
                    short(row.layer, 32),
                    row.revealed or 0.0,
                    0.0,
                    row.revealed or 0.0,
                    row.revealed_low or 0.0,
                    row.revealed_high or 0.0,
                )
                for row in shown
            ),
            (),
            (0.0, 1.0),
            "layer",
        ),
        table=_layer_table(study),
        caption=f"Bar and square: mean of the samples; line: their range. Isotropic prior, at "
        f"{'the reference noise of ' if study.reference else 'noise of '}{number(study.noise_std)}.{more}",
    )


_LAYER_COLUMNS: tables.Columns[LayerSummary] = (
    tables.text("Layer", lambda row: short(row.layer, 48)),
    tables.count("Released entries", lambda row: row.num_entries),
    tables.number("Revealed by it alone", lambda row: row.revealed, "mean"),
    tables.number("Revealed by all others", lambda row: row.revealed_without, "mean"),
    tables.number("Share of tr H", lambda row: row.information_share, "mean"),
)


def _layer_table(study: DirectionsStudy) -> Table:
    note = (
        "Layers overlap: what all others reveal stays high where they say the same. A layer that is left out "
        "protects only as far as the fourth column falls."
    )
    return tables.table(
        "layer-table",
        "Which layers' gradients carry the risk",
        sorted(study.layers, key=lambda row: (-(row.revealed or 0.0), -(row.information_share or 0.0))),
        _LAYER_COLUMNS,
        note=note if any(row.revealed is not None for row in study.layers) else "",
        sortable=True,
        layout="compact",
        print_rows=_SHOWN_LAYERS,
    )


# Which sections of the report the study adds to.
PARTS = {"what-would-protect": shaping_blocks, "evidence": directions_blocks}
