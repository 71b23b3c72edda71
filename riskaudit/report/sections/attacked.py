"""Figures of section 6 where attacks ran: predictions against attacks, and success probabilities against outcomes."""

from __future__ import annotations

from collections.abc import Sequence

from riskaudit.document.blocks import Cell, Column, Figure, Table
from riskaudit.document.cells import attacked_cell, count_cell, estimate_cell, number_cell
from riskaudit.document.plots import Panel, PanelPlot
from riskaudit.formatting import given, number, percent, short
from riskaudit.report.attack_study import AttackStudy, at_noise, noise_words
from riskaudit.results import STRONGEST, AttackRow, Estimate, Reliability

_MOST_PANELS = 6
_PRINT_ROWS = 40
# The corridor's table in section 3 already has the audit's own noise level.
_PRINT_SAMPLES = 12


def attacked_figure(study: AttackStudy) -> Figure | None:
    """The strongest attack's RMSE against its prediction, one panel per noise level; None without a pair."""
    panels = [panel for level in study.noise_levels if (panel := _panel(study, level)) is not None]
    if not panels:
        return None
    both = [value for panel in panels for point in (*panel.points, *panel.apart) for value in point]
    title = study.predicted_title()
    left = f" Only the first {_MOST_PANELS} noise levels are drawn." if len(panels) > _MOST_PANELS else ""
    return Figure(
        id="attacked",
        title=_finding(study),
        alt=f"Scatter plots of the strongest attack's RMSE against {title} per noise level, with the identity line.",
        plot=PanelPlot(
            f"predicted: {title} (data units)",
            "attacked: RMSE (data units)",
            tuple(panels[:_MOST_PANELS]),
            "strongest attack",
            "oracle start (not an attack)",
            "attacked = predicted",
            True,
            (min(both) / 1.4, max(both) * 1.4),
        ),
        table=_sample_table(study),
        caption=f"Below the line an attack did better than predicted, above it fell short. Logarithmic axes.{left}",
    )


def _panel(study: AttackStudy, level: float) -> Panel | None:
    points, apart = [], []
    for sample in study.facts.result.samples:
        estimate = study.predicted(level, sample.id)
        if estimate is None or not estimate.value or estimate.value <= 0:
            continue
        error, _ = study.best.get((level, sample.id), (None, None))
        local = study.local.get((level, sample.id))
        points += [(estimate.value, error)] if error else []
        apart += [(estimate.value, local)] if local else []
    return Panel(noise_words(level), tuple(points), tuple(apart)) if points or apart else None


def _finding(study: AttackStudy) -> str:
    if study.study.control.status == "failed":
        return "The attacks failed their positive control, so points above the line are no evidence of protection"
    parts = [
        f"{number(row.tightness_median)} times the prediction {at_noise(row.noise_std)}"
        for row in study.agreement
        if (row.attack, row.metric, row.proxy) == (STRONGEST, "rmse", study.predicted_proxy)
        and row.tightness_median is not None
    ]
    if not parts:
        return f"{study.predicted_title()} against the strongest attack on each sample"
    return f"The strongest attack's RMSE is in the median {' and '.join(parts)}"


def _sample_table(study: AttackStudy) -> Table:
    title = study.predicted_title()
    rows = []
    # Without noise there is nothing to lay beside the attack: those rows come last.
    for level in sorted(study.noise_levels, key=lambda level: (level == 0, level)):
        for sample in study.facts.result.samples:
            estimate = study.predicted(level, sample.id)
            error, row = study.best.get((level, sample.id), (None, None))
            local = study.local.get((level, sample.id))
            if error is not None or local is not None:
                rows.append(_sample_cells(study, (level, sample.id), estimate, error, row, local))
    noisy = sum(row[1].sort != 0 for row in rows)
    columns = (
        Column("Sample"),
        Column("Noise std", True),
        Column(f"Predicted: {title}", True),
        Column("Strongest attack", True),
        Column("Attack"),
        Column("Oracle start", True),
    )
    return Table(
        "attacked",
        f"{title} and attack RMSE per sample and noise level",
        columns,
        tuple(rows),
        sortable=True,
        print_rows=min(_PRINT_SAMPLES, noisy),
        layout="compact",
    )


def _sample_cells(
    study: AttackStudy,
    key: tuple[float, str],
    estimate: Estimate | None,
    error: float | None,
    row: AttackRow | None,
    local: float | None,
) -> tuple[Cell, ...]:
    return (
        Cell(short(key[1])),
        Cell(given(key[0]), key[0]),
        estimate_cell(estimate) if key[0] > 0 else Cell("none without noise", tone="unknown"),
        attacked_cell(error, row.status if row is not None else None, missing="no result"),
        Cell(study.attack_title(row.attack) if row is not None else "none"),
        number_cell(local, missing="not run"),
    )


def reliability_figure(study: AttackStudy) -> Figure | None:
    """Predicted success probabilities against how often the strongest attack succeeded; None without any."""
    records = study.reliability
    if not records:
        return None
    worst = max(record.brier for record in records)
    panels = tuple(
        Panel(
            f"{noise_words(record.noise_std)}, RMSE ≤ {given(record.tolerance)}",
            tuple((one.mean_predicted, one.observed) for one in record.bins),
        )
        for record in records[:_MOST_PANELS]
    )
    cut = f" Only the first {_MOST_PANELS} of {len(records)} are drawn." if len(records) > _MOST_PANELS else ""
    if study.study.control.status == "failed":
        title = "Success probabilities can't be judged: the attacks failed their positive control"
    else:
        title = (
            f"Predicted success probabilities have a Brier score of at most {number(worst)} "
            "(0 = perfect, 0.25 = always saying one half)"
        )
    return Figure(
        id="reliability",
        title=title,
        alt="Reliability curves: the share of attacks that succeeded against the predicted probability of success.",
        plot=PanelPlot(
            "predicted probability of success",
            "attacks that succeeded",
            panels,
            "samples of one bin",
            "",
            "as often as predicted",
            False,
            (-0.03, 1.03),
            joined=True,
        ),
        table=_reliability_table(records),
        caption=(
            "Success: the strongest attack comes within the tolerance of the sample. Above the line attacks succeed "
            f"more often than predicted. Bins with few samples scatter.{cut}"
        ),
    )


def _reliability_table(records: Sequence[Reliability]) -> Table:
    rows = tuple(
        (
            Cell(given(record.noise_std), record.noise_std),
            Cell(given(record.tolerance), record.tolerance),
            Cell(number(record.brier), record.brier),
            Cell(f"{percent(one.low)} to {percent(one.high)}", one.low),
            count_cell(one.num_samples),
            Cell(percent(one.mean_predicted), one.mean_predicted),
            Cell(percent(one.observed), one.observed),
        )
        for record in records
        for one in record.bins
    )
    columns = (
        Column("Noise std", True),
        Column("Tolerance", True, "RMSE"),
        Column("Brier score", True),
        Column("Predicted between", ranked=True),
        Column("Samples", True),
        Column("Mean predicted", True),
        Column("Attacks that succeeded", True),
    )
    return Table(
        "reliability", "Reliability of the success probability", columns, rows, layout="compact", print_rows=_PRINT_ROWS
    )
