"""The training study: order and steps of checkpoints, mean and most exposed sample, broken files, resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from study_cases import NOISE, digits, network, perceptron
from torch import nn

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit
from riskaudit.errors import CheckpointError, RiskauditError, SettingsError
from riskaudit.inputs import Samples, load_checkpoint
from riskaudit.inputs.text import natural_key
from riskaudit.release import Batch, make_release
from riskaudit.statistics.seeding import derived_seed
from riskaudit.studies.base import StudyRun
from riskaudit.studies.simulated_training import Plan, train
from riskaudit.studies.training import run as module
from riskaudit.studies.training.own_run import own_training_study
from riskaudit.studies.training.record import MeanAndWorst, TrainingRow, TrainingStudy
from riskaudit.studies.training.run import accuracy, summarise, training_study
from riskaudit.studies.training.snapshots import checkpoint_files, order_of

SETTINGS = AuditSettings(release=f"gaussian:{NOISE}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 2, 9 and 10."""
    place = tmp_path / "run"
    place.mkdir()
    for step in (10, 2, 9):
        torch.save(network(step).state_dict(), place / f"lenet5-step{step}.pt")
    return place


def study_of(result) -> TrainingStudy:
    assert result.studies.model_dump_json()
    return result.studies.get(TrainingStudy)


def test_natural_order() -> None:
    names = ["step10.pt", "Step9.pt", "step100.pt", "step9b.pt", "a.pt", "7.pt", "step²3.pt"]
    assert sorted(names, key=natural_key) == [
        "7.pt", "a.pt", "Step9.pt", "step9b.pt", "step10.pt", "step100.pt", "step²3.pt",
    ]  # fmt: skip


def test_a_run_of_folders_stands_for_those_and_what_was_saved_at_its_end(tmp_path) -> None:
    """As Trainer of transformers leaves them, with optimizers beside the weights."""
    for name in ("checkpoint-1000", "checkpoint-500", ""):
        folder = tmp_path / "run" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text('{"model_type": "bert"}')
        for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt"):
            (folder / file).write_bytes(b"state")
        (folder / "model.safetensors").write_bytes(name.encode())
    files = checkpoint_files([tmp_path / "run"])
    assert [file.name for file in files] == ["checkpoint-500", "checkpoint-1000", "run"]
    snapshots, source = order_of(files[:2])
    assert ([snapshot.step for snapshot in snapshots], source) == ([500, 1000], "file name")
    assert len({snapshot.sha256 for snapshot in snapshots}) == 2
    # Without a configuration its files are the checkpoints, and the optimizer's are none.
    (tmp_path / "plain").mkdir()
    for file in ("optimizer.pt", "step1.pt", "step2.pt"):
        (tmp_path / "plain" / file).write_bytes(b"")
    assert [file.name for file in checkpoint_files([tmp_path / "plain"])] == ["step1.pt", "step2.pt"]
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="one of its folders checkpoint-500, checkpoint-1000"):
        load_checkpoint(tmp_path / "run")


def test_a_folder_stands_for_its_checkpoints(folder) -> None:
    (folder / "notes.txt").write_text("no checkpoint")
    (folder / ".hidden-step1.pt").write_text("neither")
    (folder / "inner.pt").mkdir()
    snapshots, source = order_of(checkpoint_files([folder]))
    assert [snapshot.step for snapshot in snapshots] == [2, 9, 10]
    assert source == "file name"
    assert len(checkpoint_files([folder, folder / "lenet5-step2.pt"])) == 3
    (folder.parent / "empty").mkdir()
    with pytest.raises(CheckpointError, match="found none"):
        checkpoint_files([folder.parent / "empty"])
    with pytest.raises(CheckpointError, match="at least one"):
        checkpoint_files([])


def test_steps_stored_in_files_serve_where_names_have_none(tmp_path) -> None:
    for name, entries in {"last": {"epoch": 7}, "best": {"global_step": torch.tensor(3)}}.items():
        torch.save({"state_dict": network().state_dict(), **entries}, tmp_path / f"{name}.pt")
    snapshots, source = order_of([tmp_path / "last.pt", tmp_path / "best.pt"])
    assert [(snapshot.path.stem, snapshot.step) for snapshot in snapshots] == [("best", 3), ("last", 7)]
    assert source == "checkpoint"


def test_positions_serve_where_nothing_else_does(tmp_path) -> None:
    torch.save({"state_dict": network().state_dict(), "epoch": True}, tmp_path / "a.pt")
    torch.save(network().state_dict(), tmp_path / "b.pt")
    (tmp_path / "c.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}      ")
    (tmp_path / "d.pt").write_bytes(b"PK\x03\x04 broken")
    files = [tmp_path / name for name in ("b.pt", "a.pt", "c.safetensors", "d.pt", "gone.pt")]
    snapshots, source = order_of(files)
    assert [(snapshot.path.name, snapshot.step) for snapshot in snapshots] == [
        ("b.pt", 0), ("a.pt", 1), ("c.safetensors", 2), ("d.pt", 3), ("gone.pt", 4),
    ]  # fmt: skip
    assert source == "position"
    # The same number twice says nothing of the order.
    assert order_of([tmp_path / "run1-3.pt", tmp_path / "run2-3.pt"])[1] == "position"


def test_the_last_checkpoint_is_the_audit(folder) -> None:
    result = training_study([folder], digits(5), SETTINGS)
    last = audit(load_checkpoint(folder / "lenet5-step10.pt"), digits(5), SETTINGS)
    assert result.samples == last.samples
    assert result.checkpoint == last.checkpoint
    study = study_of(result)
    assert [row.step for row in study.rows] == [2, 9, 10]
    row = study.rows[-1]
    errors = [one.proxies["posterior_rmse"].value for one in last.samples]
    assert row.posterior_rmse.mean == pytest.approx(sum(errors) / 5)
    assert row.posterior_rmse.worst == min(errors)
    assert row.posterior_rmse.worst_sample == result.samples[errors.index(min(errors))].id
    assert row.posterior_rmse.low <= row.posterior_rmse.mean <= row.posterior_rmse.high
    assert row.revealed_fraction.worst == max(one.proxies["revealed_fraction"].value for one in last.samples)
    assert row.sha256 == result.checkpoint.sha256
    # Noise that grows and shrinks with the gradient is the release's own at the first checkpoint.
    first, _, end = study.rows
    assert first.relative_rmse.mean == pytest.approx(first.posterior_rmse.mean)
    assert end.relative_noise_std == pytest.approx(NOISE * end.median_gradient_norm / first.median_gradient_norm)
    scaled = audit(
        load_checkpoint(folder / "lenet5-step10.pt"), digits(5), SETTINGS, release=f"gaussian:{end.relative_noise_std}"
    )
    assert end.relative_rmse.worst == pytest.approx(min(one.proxies["posterior_rmse"].value for one in scaled.samples))


def test_accuracy() -> None:
    class Knows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    inputs = torch.eye(3).repeat(200, 1)
    samples = Samples.from_tensors(inputs, torch.tensor([0, 1, 0] * 200))
    assert accuracy(Knows(), samples) == pytest.approx(2 / 3)
    assert accuracy(Knows(), Samples.from_tensors(inputs, torch.rand(600))) is None
    assert accuracy(nn.Linear(3, 1), samples) is None


@pytest.mark.slow
def test_broken_and_foreign_checkpoints_are_rows_with_a_reason(folder) -> None:
    (folder / "step3.pt").write_bytes(b"\x80 broken")
    torch.save(nn.Sequential(nn.Linear(64, 10)).state_dict(), folder / "step4.pt")
    larger = network()
    larger.fc[0] = nn.Linear(48, 9)
    torch.save(larger.state_dict(), folder / "step5.pt")
    spoilt = network()
    with torch.no_grad():
        spoilt.fc[0].bias[0] = float("nan")
    torch.save(spoilt.state_dict(), folder / "step11.pt")
    result = training_study([folder], digits(5), SETTINGS)
    reasons = {row.step: row.reason for row in study_of(result).rows}
    assert list(reasons) == [2, 3, 4, 5, 9, 10, 11]
    assert [step for step, reason in reasons.items() if reason is None] == [2, 9, 10]
    assert "damaged" in reasons[3]
    assert "lenet with other sizes" in reasons[5]
    assert "NaN" in reasons[11]
    assert result.checkpoint.name == "lenet5-step10.pt"


@pytest.mark.slow
def test_another_architecture_is_a_row_with_a_reason(folder) -> None:
    from riskaudit.inputs.architectures import get_architecture

    torch.save(get_architecture("mlp").build(widths=(64, 8, 10)).state_dict(), folder / "step7.pt")
    rows = {row.step: row for row in study_of(training_study([folder], digits(5), SETTINGS)).rows}
    assert "lenet as in lenet5-step10.pt, found mlp" in rows[7].reason
    assert rows[7].posterior_rmse is None


def test_nothing_to_audit_is_an_error(tmp_path) -> None:
    for step in (1, 2):
        (tmp_path / f"{step}.pt").write_bytes(b"\x80 broken")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        training_study([tmp_path], digits(5), SETTINGS)
    with pytest.raises(CheckpointError, match=r"1.pt is damaged"):
        training_study([tmp_path / "1.pt"], digits(5), SETTINGS)


@pytest.mark.slow
def test_attacks(folder) -> None:
    run = StudyRun(attacks=True, attack_steps=5)
    study = study_of(training_study([folder / "lenet5-step2.pt"], digits(5), SETTINGS, run, attacks=("gauss-newton",)))
    assert study.control is not None
    attack = study.rows[0].attack_rmse
    assert 0 < attack.worst < attack.mean
    assert "Fewer than two" in study.summary


@pytest.mark.slow
def test_finished_trials_are_not_run_again(folder, tmp_path, monkeypatch) -> None:
    log = tmp_path / "trials.jsonl"
    done = []
    run = StudyRun(log=log, progress=lambda *count: done.append(count))
    whole = training_study([folder], digits(5), SETTINGS, run)
    assert done == [(1, 3), (2, 3), (3, 3)]
    log.write_text("\n".join(log.read_text().splitlines()[:2]) + "\n")
    measured = []
    original = module.audit_samples
    monkeypatch.setattr(module, "audit_samples", lambda client: measured.append(1) or original(client))
    again = training_study([folder], digits(5), SETTINGS, StudyRun(log=log, resume=True))
    assert len(measured) == 2
    assert again.studies == whole.studies
    torch.save(network(77).state_dict(), folder / "lenet5-step2.pt")
    with pytest.raises(SettingsError, match="another study"):
        training_study([folder], digits(5), SETTINGS, StudyRun(log=log, resume=True))


def row(step: int, mean: float, worst: float, accuracy: float | None = None) -> TrainingRow:
    spread = MeanAndWorst(mean=mean, worst=worst, worst_sample="3", num_samples=8)
    return TrainingRow(name=f"{step}.pt", sha256=None, step=step, accuracy=accuracy, posterior_rmse=spread)


def summed(rows: list[TrainingRow]) -> TrainingStudy:
    return summarise(rows, architecture="lenet", noise_std=0.01, reference_noise=True, prior_rmse=0.4)


def test_a_mean_that_hides_the_most_exposed_sample_is_said_to() -> None:
    hidden = summed([row(0, 0.1, 0.08), row(5, 0.3, 0.07)])
    assert "rises (0.1 to 0.3)" in hidden.summary
    assert "the mean hides" in hidden.summary
    assert "the mean hides" not in summed([row(0, 0.1, 0.08), row(5, 0.3, 0.25)]).summary
    assert "less than half the mean" in summed([row(0, 0.3, 0.05), row(5, 0.3, 0.09)]).summary
    assert summed([row(0, 0.3, 0.2), row(5, 0.1, 0.08)]).summary.count("falls") == 2


def test_trend_with_accuracy() -> None:
    rising = [row(step, 0.1 + step / 100, 0.1 - step / 200, step / 10) for step in range(8)]
    assert (summed(rising).mean_trend, summed(rising).worst_trend) == (pytest.approx(1), pytest.approx(-1))
    assert summed(rising[:2]).mean_trend is None
    assert summed([*rising, row(9, 0.2, 0.1)]).mean_trend is None


FEW = AuditSettings(release="gaussian:0.05", checks=False)


def test_a_run_of_its_own_is_audited_after_the_steps_asked_for() -> None:
    result = own_training_study(
        perceptron(), digits(3), digits(8, 20), FEW, steps=(3, 0, 1), batch_size=4, rate=0.3, attacks=("dlg",)
    )
    study = study_of(result)
    assert [(row.step, row.reason) for row in study.rows] == [(0, None), (1, None), (3, None)]
    assert "step 3" not in study.rows[0].name
    assert result.checkpoint.name == "step-3.safetensors"
    assert any("rate 0.3" in note for note in study.notes)
    # Two steps are an epoch: the third is of another order.
    by_hand, train_on = perceptron().double(), digits(8, 20)
    release = make_release(by_hand, nn.functional.cross_entropy, FEW.release)
    batch = Batch(train_on.inputs.double(), train_on.targets)
    for step in train(release, batch, Plan(2, 4, 0.3), derived_seed(FEW.seed, 0)):
        if step in (0, 1, 3):
            errors = [row.proxies["posterior_rmse"].value for row in audit(by_hand, digits(3), FEW).samples]
            row = next(row for row in study.rows if row.step == step)
            assert [risk.posterior_rmse.value for risk in row.samples] == [pytest.approx(error) for error in errors]
        if step == 3:
            break


def test_one_spectrum_serves_both_noises(folder, monkeypatch) -> None:
    audits = []
    original = module.audit_samples
    monkeypatch.setattr(module, "audit_samples", lambda client: audits.append(1) or original(client))
    study = study_of(training_study([folder], digits(3), SETTINGS))
    assert len(audits) == len(study.rows) == 3
    assert all(row.relative_rmse is not None for row in study.rows)


def test_the_closed_form_joins_the_attacks_and_breaks_a_bottleneck() -> None:
    settings = AuditSettings(model_defense="precode", reference_noise=1e-12, checks=False)
    run = StudyRun(attacks=True, attack_steps=2)
    result = own_training_study(
        perceptron(), digits(2), digits(4, 20), settings, run, steps=(0, 1), batch_size=4, attacks=("dlg",)
    )
    for row in study_of(result).rows:
        assert set(row.attack_errors) == {"dlg", "analytic"}
        assert row.attack_errors["analytic"].mean < 1e-6 < row.attack_errors["dlg"].mean
        assert row.attack_rmse.mean <= row.attack_errors["analytic"].mean


def test_a_run_of_its_own_that_diverges_ends_there() -> None:
    samples, others = digits(2), digits(8, 20)
    study = study_of(own_training_study(perceptron(), samples, others, FEW, steps=(0, 50), batch_size=4, rate=1e308))
    assert [row.step for row in study.rows] == [0]
    assert any("diverged" in note for note in study.notes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batch_size": 9}, "at least 9 samples"),
        ({"steps": (-1,)}, "`points` of at least 0"),
        ({"train_on": Samples.from_tensors(torch.rand(8, 1, 9, 9), torch.arange(8))}, "`train`"),
    ],
)
def test_a_run_of_its_own_that_does_not_fit_is_refused(changes, expected) -> None:
    given = {"train_on": digits(8), "steps": (0,), "batch_size": 4} | changes
    with pytest.raises(RiskauditError, match=expected):
        own_training_study(perceptron(), digits(2), settings=FEW, **given)
