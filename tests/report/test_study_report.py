"""The initialization and training studies in the report: what they found, in every format, and in few pages."""

from __future__ import annotations

import re

import numpy as np
import pytest
from report_cases import build
from report_hostile import HOSTILE
from report_reading import Report, words

from riskaudit.document.figures import to_svg
from riskaudit.document.plots import CurvePlot, FrontPlot, SpanPlot
from riskaudit.report import FORMATS, render
from riskaudit.results import AuditResult, Estimate, Studies
from riskaudit.studies.defenses.front import defense_rows, equal_utility
from riskaudit.studies.defenses.recommendation import recommend
from riskaudit.studies.defenses.record import DefendedSample, DefenseRun, DefensesStudy, TrainingPoint
from riskaudit.studies.initialization.record import InitializationRow, InitializationStudy
from riskaudit.studies.rows import Control, Quartiles
from riskaudit.studies.training.record import MeanAndWorst, TrainingRow, TrainingStudy

NAMES = (
    "default",
    "xavier_normal",
    "orthogonal",
    "kaiming_normal",
    "normal",
    "uniform",
    "checkpoint",
    "xavier_uniform",
)


def quartiles(median: float) -> Quartiles:
    return Quartiles(lower=0.9 * median, median=median, upper=1.1 * median, num_values=24)


def initialization(reason: str = "the loss or the gradient is not finite") -> InitializationStudy:
    rows = [
        InitializationRow(
            initialization=name, description=name, num_seeds=3, rank=place + 1,
            posterior_rmse=quartiles(0.3 / (place + 1)), revealed_fraction=quartiles(0.1 * place + 0.05),
            largest_eigenvalue=quartiles(10.0**place), trace=quartiles(3 * 10.0**place),
            expected_rmse=Quartiles(lower=0.4, median=None, upper=None, num_values=24, num_infinite=14),
            attack_rmse=quartiles(0.31 / (place + 1)), low=0.28 / (place + 1), high=0.32 / (place + 1),
            told_apart=None if place == 0 else place > 1,
        )
        for place, name in enumerate(NAMES[:-1])
    ]  # fmt: skip
    failed = InitializationRow(
        initialization=NAMES[-1], description="", num_seeds=3, num_failed_seeds=3, reasons=[reason]
    )
    return InitializationStudy(
        architecture="lenet", noise_std=0.01, reference_noise=False, prior_rmse=0.31, num_seeds=3, confidence=0.95,
        rows=[*rows, failed], trials=[], recommended="default", attacks=["gauss-newton"],
        recommendation=f"Recommended: PyTorch's default {reason}", control=Control(status="passed", rmse=0.001),
        notes=["a ranking by leakage only", reason],
    )  # fmt: skip


def training(steps: tuple[int, ...] = (0, 1, 5, 20), reason: str = "step7.pt is damaged") -> TrainingStudy:
    rows = [
        TrainingRow(
            name=f"step{step}.pt", sha256="ab" * 32, step=step, accuracy=float(np.tanh(step / 10)), mean_loss=1.0,
            median_gradient_norm=12.0 / (place + 1),
            posterior_rmse=MeanAndWorst(mean=0.05 * (place + 1), worst=0.02, worst_sample="4", num_samples=24),
            revealed_fraction=MeanAndWorst(mean=0.9 / (place + 1), worst=0.98, worst_sample="4", num_samples=24),
        )
        for place, step in enumerate(steps)
    ]  # fmt: skip
    rows.append(TrainingRow(name="step7.pt", sha256=None, step=30, reason=reason))
    return TrainingStudy(
        architecture="lenet", noise_std=0.01, reference_noise=True, prior_rmse=0.31, step_source="file name", rows=rows,
        summary="From step 0 to 20 the mean posterior error rises", mean_trend=0.9, worst_trend=-0.1,
        control=Control(status="failed", rmse=0.4), notes=["step: the last number of the file name"],
    )  # fmt: skip


def studied(**changes: object) -> AuditResult:
    studies = {
        "initialization": initialization().model_dump(mode="json"),
        "training": training().model_dump(mode="json"),
    }
    return build(24).model_copy(update={"studies": Studies.model_validate(studies | changes)})


def test_findings_and_tables() -> None:
    report = Report.of(studied())
    text, figures = report.text_of("evidence"), report.figures
    assert "Recommended: PyTorch's default" in text
    title = words(figures["initialization"].title)
    assert re.search(r"checkpoint itself leaks most .*0\.0429.*, PyTorch's default least .*0\.300", title)
    assert re.search("Xavier uniform: the loss .* not finite", text)
    assert "14 of 24 infinite" in words(report.tables["initialization"])
    assert re.search(r"step 0 to 20 .* 0\.0500 to 0\.200, .* 0\.0200", words(figures["training"].title))
    assert "+0.900" in text
    assert "step7.pt: step7.pt is damaged" in text
    assert "no evidence of protection" in text
    assert "Studies stored in audit.json" not in text
    plot = figures["initialization"].plot
    assert isinstance(plot, SpanPlot)
    # Riskiest first, like every other figure.
    assert plot.spans[0].label == "the checkpoint itself"
    assert plot.y_title == "initialization"
    curves = figures["training"].plot
    assert isinstance(curves, CurvePlot)
    assert curves.x_scale == "linear"
    assert [curve.label for curve in curves.curves][-1] == "accuracy on the samples"
    assert curves.curves[1].y[0] == pytest.approx(0.05 / 0.31)


def test_wide_steps_are_drawn_on_a_logarithmic_axis_with_zero() -> None:
    figure = Report.of(studied(training=training((0, 1, 1000)).model_dump(mode="json"))).figures["training"]
    assert figure.plot.x_scale == "symlog"
    assert to_svg(figure.plot, figure.id, "screen").startswith("<svg")


def test_one_checkpoint_has_a_table_and_no_figure() -> None:
    report = Report.of(studied(training=training((4,)).model_dump(mode="json")))
    assert "training" not in report.figures
    assert "training" in report.tables


def test_no_accuracy_no_curve() -> None:
    without = training().model_dump(mode="json")
    for row in without["rows"]:
        row["accuracy"] = None
    assert len(Report.of(studied(training=without)).figures["training"].plot.curves) == 2


def test_a_study_that_cannot_be_read_says_so() -> None:
    text = Report.of(studied(initialization={"rows": 3}, training=[])).text
    assert "Initialization: architecture: Field required" in text
    assert "Training: studies.training: Input should be" in text


@pytest.mark.slow
def test_hostile_strings_stay_text() -> None:
    everything = " ".join(HOSTILE)
    first = initialization(everything)
    rows = [row.model_copy(update={"initialization": HOSTILE[place]}) for place, row in enumerate(first.rows[:5])]
    hostile = studied(
        initialization=first.model_copy(update={"rows": rows}).model_dump(mode="json"),
        training=training(reason=everything).model_copy(update={"summary": everything}).model_dump(mode="json"),
    )
    assert b"<script>alert" not in render(hostile, FORMATS)["audit.html"]


def test_an_audit_without_the_studies_has_no_trace_of_them() -> None:
    report = Report.of(build(8))
    assert not {"initialization", "training"} & {*report.figures, *report.tables}
    assert "which first weights" not in report.text
    assert "from checkpoint to checkpoint" not in report.text


def defenses(reason: str = "the loss is not finite") -> DefensesStudy:
    """Three defences: the second protects as predicted, the third only from the attacks, and once diverged."""
    runs = []
    for name, loss, attacked, predicted in (
        ("gradient", 0.4, 0.02, 0.01), ("clip:1,gaussian:0.1", 0.5, 0.3, 0.28), ("prune:0.9", 0.51, 0.29, 0.02),
    ):  # fmt: skip
        for number in range(3):
            error = Estimate(value=predicted, status="exact")
            samples = [
                DefendedSample(sample_id=str(place), status="exact", outsider_rmse=error, relative_rmse=error,
                               attack_rmse=attacked + 0.001 * place, attack="dlg")
                for place in range(6)
            ]  # fmt: skip
            points = [
                TrainingPoint(step=step, loss=loss + 0.01 * number + 1 / (1 + step), accuracy=0.9, samples=samples)
                for step in (0, 10)
            ]
            runs.append(DefenseRun(defense=name, number=number, status="finished", points=points))
    runs[-1] = DefenseRun(defense="prune:0.9", number=2, status="diverged", reason=reason)
    rows = defense_rows(runs, {run.defense: "gaussian" in run.defense for run in runs}, "informed", 0.95)
    recommended, sentence = recommend(rows, 0.15)
    return DefensesStudy(
        architecture="lenet", noise_std=0.001, reference_noise=True, prior_rmse=0.31, attacks=["dlg"],
        control=Control(status="passed", rmse=0.001), epochs=1, num_steps=10, batch_size=8, learning_rate=0.1,
        num_training_samples=80, num_seeds=3, points=[0, 10], confidence=0.95, target_rmse=0.15, tested=True, rows=rows,
        equal_utility=equal_utility(rows, runs, "informed", 0.95, 0), runs=runs, recommended=recommended,
        recommendation=sentence, notes=[reason],
    )  # fmt: skip


def test_the_front_of_defences_and_its_table() -> None:
    report = Report.of(studied(defenses=defenses().model_dump(mode="json")))
    text, figure = report.text_of("evidence"), report.figures["defenses"]
    assert "Recommended: --release clip:1,gaussian:0.1" in text
    assert "no defence, clip:1,gaussian:0.1 make the front" in words(figure.title)
    assert "1 of 3 defences is dominated" in words(figure.title)
    table = words(report.tables["defenses"])
    assert "dominated by clip:1,gaussian:0.1" in table
    assert "1 of 3 trainings without all numbers" in table
    assert "not told apart" not in words(report.tables["defenses-equal-utility"])
    assert "against these attacks" in words(report.tables["defenses-equal-utility"])
    assert "prune:0.9: the loss is not finite" in text
    plot = figure.plot
    assert isinstance(plot, FrontPlot)
    assert [(point.on_front, point.other) for point in plot.points] == [(True, 0.01), (True, 0.28), (False, 0.02)]
    assert to_svg(plot, figure.id, "print").startswith("<svg")


def test_names_of_defences_in_the_figure_are_no_formulas() -> None:
    study = defenses()
    rows = [row.model_copy(update={"defense": r"$\frac{1$ <b>"}) for row in study.rows]
    figure = Report.of(studied(defenses=study.model_copy(update={"rows": rows}).model_dump(mode="json"))).figures[
        "defenses"
    ]
    assert r"$\frac{1$ &lt;b&gt;" in to_svg(figure.plot, figure.id, "screen")


def test_one_defence_has_a_table_and_no_front() -> None:
    study = defenses()
    few = study.model_copy(update={"rows": study.rows[:1], "equal_utility": []})
    report = Report.of(studied(defenses=few.model_dump(mode="json")))
    assert "defenses" in report.tables
    assert "defenses" not in report.figures
