"""Part of section 6 where the training study ran: the leak over the checkpoints of one run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Bullets, Cell, Figure, Paragraph, Subheading, Table
from riskaudit.document.cells import ends_cell, number_cell
from riskaudit.document.plots import Curve, CurvePlot
from riskaudit.formatting import count, given, number, sentence, short, signed
from riskaudit.results.facts import Facts
from riskaudit.studies.training.record import MeanAndWorst, TrainingRow, TrainingStudy
from riskaudit.studies.verify.section import attack_control_blocks

# Steps that span more than this factor are drawn on a logarithmic axis.
_WIDE = 30
_PRINT_ROWS = 30


def training_blocks(facts: Facts) -> list[Block]:
    """Finding, figure with its table, and notes; nothing where the study didn't run."""
    study = facts.result.studies.get(TrainingStudy)
    if study is None:
        return []
    heading = Subheading("Training: how the leak changes from checkpoint to checkpoint")
    blocks: list[Block] = [heading, Paragraph(sentence(study.summary), lead="Finding.", brief=True)]
    if study.mean_trend is not None and study.worst_trend is not None:
        text = (
            "Over the checkpoints, the accuracy on the samples correlates with the mean posterior error by "
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


def _table(study: TrainingStudy) -> Table:
    def spread(
        title: str, name: str, cell: Callable[[MeanAndWorst], Cell], unit: str = ""
    ) -> tables.RowColumn[TrainingRow]:
        def shown(row: TrainingRow) -> Cell:
            error: MeanAndWorst | None = getattr(row, name)
            return number_cell(None, missing="no result") if error is None else cell(error)

        known = any(getattr(row, name) is not None for row in study.rows)
        optional = name in ("attack_rmse", "relative_rmse")
        return tables.column(title, shown, unit, brief=name == "posterior_rmse", shown=known or not optional)

    columns: tables.Columns[TrainingRow] = (
        tables.count("Step", lambda row: row.step, brief=True),
        tables.column("Checkpoint", _checkpoint_cell, numeric=False),
        tables.share("Accuracy", lambda row: row.accuracy, "on the samples", missing="no result", brief=True),
        spread(
            "Mean posterior error",
            "posterior_rmse",
            lambda error: ends_cell(error.mean, error.low, error.high),
            "interval",
        ),
        spread(
            "Least posterior error",
            "posterior_rmse",
            lambda error: _cell(error.worst, short(error.worst_sample, 14)),
            "sample",
        ),
        spread(
            "At relative noise",
            "relative_rmse",
            lambda error: _cell(error.mean, number(error.worst)),
            "mean, least",
        ),
        spread("Mean revealed fraction", "revealed_fraction", lambda error: number_cell(error.mean)),
        spread("Largest revealed fraction", "revealed_fraction", lambda error: number_cell(error.worst)),
        tables.number("Gradient norm", lambda row: row.median_gradient_norm, "median", missing="no result"),
        spread(
            "Strongest attack's RMSE",
            "attack_rmse",
            lambda error: _cell(error.mean, number(error.worst)),
            "mean, least",
        ),
        *_attack_columns(study),
    )
    return tables.table(
        "training",
        "Checkpoints of the run",
        study.rows,
        columns,
        note="RMSE in data units; larger is safer. Relative noise: in the proportion to the median gradient norm that "
        "the noise has at the first checkpoint.",
        sortable=True,
        layout="compact",
        print_rows=_PRINT_ROWS,
        brief=True,
    )


def _attack_columns(study: TrainingStudy) -> tuple[tables.RowColumn[TrainingRow], ...]:
    """A column per attack, where there are several: an attack made for the defence beside those that don't care."""
    names = list(dict.fromkeys(name for row in study.rows for name in row.attack_errors))

    def cell(row: TrainingRow, name: str) -> Cell:
        error = row.attack_errors.get(name)
        return number_cell(None, missing="no result") if error is None else _cell(error.mean, number(error.worst))

    return tuple(
        tables.column(f"RMSE of {name}", partial(cell, name=name), "mean, least", shown=len(names) > 1)
        for name in names
    )


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
    attacked = [row.attack_rmse.mean for row, _ in drawn if row.attack_rmse is not None]
    if len(attacked) == len(drawn):
        curves.append(Curve("strongest attack, mean", tuple(error / study.prior_rmse for error in attacked)))
    accuracies = [row.accuracy for row, _ in drawn if row.accuracy is not None]
    if len(accuracies) == len(drawn):
        curves.append(Curve("accuracy on the samples", tuple(accuracies)))
    (start, before), (end, after) = drawn[0], drawn[-1]
    return Figure(
        id="training",
        title=f"From step {start.step:,} to {end.step:,} the mean error goes from {number(before.mean)} to "
        f"{number(after.mean)}, that of the most exposed sample from {number(before.worst)} to {number(after.worst)}",
        alt=f"Mean and least posterior error, and accuracy, over {count(len(drawn), 'checkpoint')}.",
        plot=CurvePlot(
            "step of training",
            "share",
            tuple(steps),
            tuple(curves),
            # What an attack without bounds makes may be anywhere; the table has it.
            y_limits=(0.0, min(2.0, max(1.0, *(value for curve in curves for value in curve.y)))),
            x_scale="symlog" if max(positive) > _WIDE * min(positive) else "linear",
        ),
        table=table,
        caption=(
            f"Posterior error as a share of the {number(study.prior_rmse)} of a guess from the prior, at noise std "
            f"{given(study.noise_std)}: 1 is all protected. Attacks' errors likewise; accuracy on the same scale."
        ),
    )


def _checkpoint_cell(row: TrainingRow) -> Cell:
    failed = f"{count(row.num_failed_samples, 'sample')} failed" if row.num_failed_samples else ""
    return Cell(short(row.name, 32), detail="no result" if row.reason else failed)


def _cell(value: float, detail: str) -> Cell:
    return Cell(number(value), value, detail=detail)


# Which sections of the report the study adds to.
PARTS = {"evidence": training_blocks}
