"""Part of section 6 where the training study ran: the leak over the checkpoints of one run."""

from __future__ import annotations

from riskaudit.document.blocks import Block, Bullets, Cell, Column, Figure, Paragraph, Subheading, Table
from riskaudit.document.cells import number_cell
from riskaudit.document.plots import Curve, CurvePlot
from riskaudit.formatting import count, given, interval, number, percent, sentence, short, signed
from riskaudit.report.sections.initialization_study import attack_control_blocks
from riskaudit.results import MeanAndWorst, TrainingRow, TrainingStudy
from riskaudit.results.facts import Facts

# Steps that span more than this factor are drawn on a logarithmic axis.
_WIDE = 30
_PRINT_ROWS = 30


def training_blocks(facts: Facts) -> list[Block]:
    """Finding, figure with its table, and notes; nothing where the study didn't run."""
    study = facts.result.studies.training
    if study is None:
        return []
    heading = Subheading("Training: how the leak changes from checkpoint to checkpoint")
    blocks: list[Block] = [heading, Paragraph(sentence(study.summary), lead="Finding.", brief=True)]
    if study.mean_trend is not None and study.worst_trend is not None:
        text = (
            "Over the checkpoints, the accuracy on the samples correlates with the mean posterior RMSE by "
            f"{signed(study.mean_trend)}, with that of the most exposed sample by {signed(study.worst_trend)} "
            "(Spearman)."
        )
        blocks.append(Paragraph(text, lead="Risk against accuracy."))
    blocks += attack_control_blocks(study.control)
    table = _table(study)
    figure = _figure(study, table)
    blocks.append(table if figure is None else figure)
    failed = tuple(f"{short(row.name, 60)}: {short(row.reason, 200)}" for row in study.rows if row.reason)
    blocks += [Bullets(failed, lead="Checkpoints without numbers:")] if failed else []
    blocks.append(Bullets(tuple(sentence(short(note, 300)) for note in study.notes), lead="Notes."))
    return blocks


def _figure(study: TrainingStudy, table: Table) -> Figure | None:
    drawn = [(row, row.posterior_rmse) for row in study.rows if row.posterior_rmse is not None]
    steps = [float(row.step) for row, _ in drawn]
    if len(set(steps)) < 2 or study.prior_rmse <= 0:
        return None
    positive = [step for step in steps if step > 0]
    curves = [
        Curve("most exposed sample", tuple(error.worst / study.prior_rmse for _, error in drawn)),
        Curve("mean over samples", tuple(error.mean / study.prior_rmse for _, error in drawn)),
    ]
    accuracies = [row.accuracy for row, _ in drawn if row.accuracy is not None]
    if len(accuracies) == len(drawn):
        curves.append(Curve("accuracy on the samples", tuple(accuracies)))
    return Figure(
        id="training",
        title=_finding(drawn[0], drawn[-1]),
        alt=f"Mean and least posterior RMSE, and accuracy, over {count(len(drawn), 'checkpoint')}.",
        plot=CurvePlot(
            "step of training",
            "share",
            tuple(steps),
            tuple(curves),
            y_limits=(0.0, max(1.0, *(value for curve in curves for value in curve.y))),
            x_scale="symlog" if max(positive) > _WIDE * min(positive) else "linear",
        ),
        table=table,
        caption=(
            f"Posterior RMSE as a share of the {number(study.prior_rmse)} of a guess from the prior, at noise std "
            f"{given(study.noise_std)}: 1 is all protected. Accuracy on the same scale."
        ),
    )


def _finding(first: tuple[TrainingRow, MeanAndWorst], last: tuple[TrainingRow, MeanAndWorst]) -> str:
    (start, before), (end, after) = first, last
    return (
        f"From step {start.step:,} to {end.step:,} the mean error goes from {number(before.mean)} to "
        f"{number(after.mean)}, that of the most exposed sample from {number(before.worst)} to {number(after.worst)}"
    )


def _table(study: TrainingStudy) -> Table:
    attacked = any(row.attack_rmse is not None for row in study.rows)
    columns = [
        Column("Step", True),
        Column("Checkpoint"),
        Column("Accuracy", True, "on the samples"),
        Column("Mean posterior RMSE", True, "interval"),
        Column("Least posterior RMSE", True, "sample"),
        Column("Mean revealed fraction", True),
        Column("Largest revealed fraction", True),
        Column("Gradient norm", True, "median"),
        *([Column("Strongest attack's RMSE", True, "mean, least")] if attacked else []),
    ]
    return Table(
        "training",
        "Checkpoints of the run",
        tuple(columns),
        tuple(_cells(row, attacked) for row in study.rows),
        note="RMSE in data units; larger is safer.",
        sortable=True,
        layout="compact",
        print_rows=_PRINT_ROWS,
        brief=True,
        brief_columns=(0, 2, 3, 4),
    )


def _cells(row: TrainingRow, attacked: bool) -> tuple[Cell, ...]:
    error, revealed, attack = row.posterior_rmse, row.revealed_fraction, row.attack_rmse
    missing = f"{count(row.num_failed_samples, 'sample')} failed" if row.num_failed_samples else ""
    none = number_cell(None, missing="no result")
    found = none if attack is None else Cell(number(attack.mean), attack.mean, detail=number(attack.worst))
    return (
        Cell(f"{row.step:,}", float(row.step)),
        Cell(short(row.name, 32), detail="no result" if row.reason else missing),
        Cell(percent(row.accuracy), row.accuracy) if row.accuracy is not None else none,
        none if error is None else Cell(number(error.mean), error.mean, detail=interval(error.low, error.high)),
        none if error is None else Cell(number(error.worst), error.worst, detail=short(error.worst_sample, 14)),
        number_cell(None if revealed is None else revealed.mean, missing="no result"),
        number_cell(None if revealed is None else revealed.worst, missing="no result"),
        number_cell(row.median_gradient_norm, missing="no result"),
        *([found] if attacked else []),
    )
