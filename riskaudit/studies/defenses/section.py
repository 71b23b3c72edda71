"""Part of section 6 where the study of defences ran: risk against utility, and how both change in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Bullets, Cell, Figure, Paragraph, Subheading, Table
from riskaudit.document.cells import ends_cell, number_cell, share_cell
from riskaudit.document.plots import FrontPlot, FrontPoint, Reference
from riskaudit.formatting import count, interval, number, percent, sentence, short
from riskaudit.results.facts import Facts
from riskaudit.studies.defenses.record import DefenseRow, DefensesStudy, EqualUtility, PointRow, SeedMean
from riskaudit.studies.verify.section import attack_control_blocks

_PRINT_ROWS = 40
_LABEL = 44


def defenses_blocks(facts: Facts) -> list[Block]:
    """Recommendation, the front with its table, equal utility, the points of training; nothing where it didn't run."""
    study = facts.result.studies.get(DefensesStudy)
    if study is None:
        return []
    heading = Subheading("Defences: what each protects, and what it costs")
    blocks: list[Block] = [heading, Paragraph(sentence(study.recommendation), lead="Finding.", brief=True)]
    blocks += attack_control_blocks(study.control)
    table = _table(study)
    figure = _figure(study, table)
    blocks.append(table if figure is None else figure)
    blocks += [_equal_utility(study)] if study.equal_utility else []
    blocks += [_points(study)] if any(row.points for row in study.rows) else []
    failed = tuple(f"{_label(row)}: {short('; '.join(row.reasons), 200)}" for row in study.rows if row.reasons)
    blocks += [Bullets(failed, lead="Without numbers, wholly or in part:")] if failed else []
    blocks.append(Bullets(tuple(sentence(short(note, 300)) for note in study.notes), lead="Notes."))
    return blocks


def _table(study: DefensesStudy) -> Table:
    def mean(
        title: str, name: str, unit: str = "mean, interval", *, brief: bool = True
    ) -> tables.RowColumn[DefenseRow]:
        return tables.column(title, lambda row: _mean_cell(getattr(row, name)), unit, brief=brief)

    columns: tables.Columns[DefenseRow] = (
        tables.column("Defence", _defense_cell, numeric=False, brief=True),
        mean("Final training loss", "loss"),
        tables.column(
            "Test accuracy", lambda row: _share_cell(row.accuracy), "mean, interval", brief=True, shown=study.tested
        ),
        mean("Least attack RMSE", "attack_rmse"),
        mean("Predicted RMSE", "predicted_rmse"),
        mean("Outsider's predicted RMSE", "outsider_rmse", "mean", brief=False),
        tables.column(
            "Most exposed sample",
            lambda row: replace(
                number_cell(row.least_attack, missing="no result"),
                detail="" if row.least_predicted is None else f"predicted {number(row.least_predicted)}",
            ),
            "attack RMSE",
        ),
        tables.text("Place", _place, brief=True),
    )
    return tables.table(
        "defenses",
        "Defences: utility and risk",
        study.rows,
        columns,
        note=(
            f"RMSE in data units, larger is safer; a guess from the prior has {number(study.prior_rmse)}. Means over "
            f"samples of each one's least error over steps {', '.join(map(str, study.points))}; "
            f"{percent(study.confidence)} intervals over {count(study.num_seeds, 'seed')} (Student's t)."
        ),
        sortable=True,
        layout="compact",
        brief=True,
    )


def _figure(study: DefensesStudy, table: Table) -> Figure | None:
    points = tuple(
        FrontPoint(
            label=_label(row),
            x=row.loss.mean,
            x_ends=_ends(row.loss),
            y=row.attack_rmse.mean,
            y_ends=_ends(row.attack_rmse),
            other=None if row.predicted_rmse is None else row.predicted_rmse.mean,
            on_front=bool(row.on_front),
        )
        for row in study.rows
        if row.loss is not None and row.attack_rmse is not None
    )
    if len(points) < 2:
        return None
    plot = FrontPlot(
        x_title="final training loss; smaller is better",
        y_title="RMSE (data units); larger is safer",
        points=points,
        titles=("least attack error, on the front", "least attack error, dominated", "predicted error"),
        references=(Reference(study.target_rmse, "wanted"),),
    )
    return Figure(
        id="defenses",
        title=_finding(study),
        alt=f"Least attack error and predicted error of {count(len(points), 'defence')} against the training loss.",
        plot=plot,
        table=table,
        caption=(
            "Joined by a line: defences that no other one dominates. Where the predicted error lies far below the "
            f"attack's, more leaks than the attacks found. Bars: {percent(study.confidence)} intervals over seeds."
        ),
    )


def _finding(study: DefensesStudy) -> str:
    placed = [row for row in study.rows if row.on_front is not None]
    front = [_label(row) for row in placed if row.on_front]
    dominated = len(placed) - len(front)
    text = f"{', '.join(front[:4])}{' and others' if len(front) > 4 else ''} make the front of risk against utility"
    return f"{text}; {dominated} of {count(len(placed), 'defence')} {'is' if dominated == 1 else 'are'} dominated"


def _equal_utility(study: DefensesStudy) -> Table:
    def difference(title: str, name: str) -> tables.RowColumn[EqualUtility]:
        ends: Callable[[EqualUtility], Cell] = lambda pair: ends_cell(  # noqa: E731
            getattr(pair, f"{name}_difference"),
            getattr(pair, f"{name}_low"),
            getattr(pair, f"{name}_high"),
            missing="no result",
        )
        return tables.column(title, ends, "first less second, interval")

    columns: tables.Columns[EqualUtility] = (
        tables.text("First", lambda pair: short(pair.first, _LABEL)),
        tables.text("Second", lambda pair: short(pair.second, _LABEL)),
        difference("Least attack RMSE", "attack"),
        difference("Predicted RMSE", "predicted"),
        tables.text("Safer", _safer),
    )
    return tables.table(
        "defenses-equal-utility",
        "Defences at equal utility: the intervals of their final losses overlap",
        study.equal_utility,
        columns,
        note=f"Paired by sample and seed; {percent(study.confidence)} bootstrap intervals over both.",
        layout="compact",
        print_rows=_PRINT_ROWS,
    )


def _safer(pair: EqualUtility) -> str:
    if pair.told_apart is None or pair.attack_difference is None:
        return "too few samples or seeds"
    if not pair.told_apart:
        return "not told apart"
    return f"{short(pair.first if pair.attack_difference > 0 else pair.second, _LABEL)}, against these attacks"


def _points(study: DefensesStudy) -> Table:
    Place = tuple[DefenseRow, PointRow]

    def mean(title: str, name: str, unit: str = "mean, interval", *, shown: bool = True) -> tables.RowColumn[Place]:
        return tables.column(title, lambda pair: _mean_cell(getattr(pair[1], name)), unit, shown=shown)

    places = [(row, point) for row in study.rows for point in row.points]
    joint = any(point.informed_rmse is not None for _, point in places)
    columns: tables.Columns[Place] = (
        tables.text("Defence", lambda pair: _label(pair[0])),
        tables.count("Step", lambda pair: pair[1].step),
        mean("Training loss", "loss"),
        mean("Attack RMSE", "attack_rmse"),
        mean("Predicted RMSE", "outsider_rmse", "knows no other sample" if joint else "mean, interval"),
        mean("Informed attacker's", "informed_rmse", "knows all others", shown=joint),
        mean("At relative noise", "relative_rmse", "predicted"),
    )
    return tables.table(
        "defenses-points",
        "Early and late in training",
        places,
        columns,
        note=(
            "Predicted at the defence's own noise, and at noise in the proportion to the median norm of the samples' "
            "uploads that it has before the first step."
        ),
        layout="compact",
        print_rows=_PRINT_ROWS,
    )


def _label(row: DefenseRow) -> str:
    return "no defence" if row.defense == "gradient" else short(row.defense, _LABEL)


def _defense_cell(row: DefenseRow) -> Cell:
    failed = row.num_seeds - row.num_finished
    return Cell(_label(row), detail=f"{failed} of {row.num_seeds} trainings without all numbers" if failed else "")


def _place(row: DefenseRow) -> str:
    if row.on_front is None:
        return "no result"
    return "on the front" if row.on_front else f"dominated by {short(', '.join(row.dominated_by), 60)}"


def _mean_cell(mean: SeedMean | None) -> Cell:
    if mean is None:
        return number_cell(None, missing="no result")
    return ends_cell(mean.mean, mean.low, mean.high)


def _share_cell(mean: SeedMean | None) -> Cell:
    if mean is None:
        return share_cell(None, missing="no result")
    # Student's interval knows nothing of 0 and 1.
    low, high = (None if end is None else min(1.0, max(0.0, end)) for end in (mean.low, mean.high))
    return replace(share_cell(mean.mean), detail=interval(low, high))


def _ends(mean: SeedMean) -> tuple[float, float] | None:
    return None if mean.low is None or mean.high is None else (mean.low, mean.high)


# Which sections of the report the study adds to.
PARTS = {"evidence": defenses_blocks}
