"""``study initialization``, ``study training`` and ``study defenses`` as a user runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scan_cases import CHECKPOINT, DATA, Outcome
from study_cases import network

from riskaudit.files import MANIFEST
from riskaudit.inputs.architectures import get_architecture
from riskaudit.studies.defenses.record import DefensesStudy
from riskaudit.studies.initialization.record import InitializationStudy
from riskaudit.studies.training.record import TrainingStudy

Command = Callable[..., Outcome]
COMMON = ("--data", str(DATA), "--limit", "5", "--release", "gaussian:0.003", "--out", "out", "--format", "json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "run"
    place.mkdir()
    for step in (10, 9):
        torch.save(network(step).state_dict(), place / f"step{step}.pt")
    return place


@pytest.mark.slow
def test_initialization(command: Command) -> None:
    done = command("study", "initialization", CHECKPOINT, *COMMON, "--format", "html", "--seeds", "1")
    assert done.code == 0, done.err
    assert {path.name for path in done.folder.iterdir()} == {"audit.json", "audit.html", MANIFEST}
    study = InitializationStudy.model_validate(done.document["studies"]["initialization"])
    assert len(study.rows) == 9
    assert done.document["command"].startswith("riskaudit study initialization digits-lenet.safetensors --data")
    assert "--seeds 1" in done.document["command"]
    assert "finished 9 of 9 steps" in done.err
    assert "which first weights leak least" in (done.folder / "audit.html").read_text(encoding="utf-8")
    assert not list(done.folder.parent.glob("*.trials.jsonl"))


@pytest.mark.slow
def test_training_of_a_folder_and_of_files(command: Command, folder: Path) -> None:
    (folder / "step3.pt").write_bytes(b"\x80 broken")
    done = command("study", "training", folder, *COMMON, "--format", "md")
    assert done.code == 0, done.err
    study = TrainingStudy.model_validate(done.document["studies"]["training"])
    assert [(row.name, row.step, row.reason is None) for row in study.rows] == [
        ("step3.pt", 3, False), ("step9.pt", 9, True), ("step10.pt", 10, True),
    ]  # fmt: skip
    assert done.document["checkpoint"]["name"] == "step10.pt"
    assert done.document["command"].startswith("riskaudit study training run --data")
    files = command("study", "training", folder / "step10.pt", folder / "step9.pt", *COMMON)
    assert files.code == 0, files.err
    rows = TrainingStudy.model_validate(files.document["studies"]["training"]).rows
    assert rows == study.rows[1:]
    assert files.document["command"].split()[3:6] == ["step10.pt", "step9.pt", "--data"]


def test_the_last_file_may_be_broken(command: Command, folder: Path) -> None:
    (folder / "step11.pt").write_bytes(b"\x80 broken")
    done = command("study", "training", folder, *COMMON)
    assert done.code == 0, done.err
    assert done.document["checkpoint"]["name"] == "step10.pt"


@pytest.fixture
def perceptron(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = get_architecture("mlp").build(widths=(64, 4, 10))
    torch.save(model.state_dict(), tmp_path / "mlp.pt")
    return tmp_path / "mlp.pt"


FEW = ("--data", str(DATA), "--limit", "2", "--no-checks", "--proxies", "revealed_fraction", "--out", "out",
       "--format", "json", "--train", str(DATA), "--train-limit", "4", "--training-batch", "2", "--seeds", "1",
       "--attack", "dlg", "--attack-steps", "2")  # fmt: skip


def test_defenses(command: Command, perceptron: Path) -> None:
    given = ("--defense", "mean:2,gaussian:0.1", "--points", "2", "--format", "html")
    done = command("study", "defenses", perceptron, *FEW, "--test", DATA, *given)
    assert done.code == 0, done.err
    study = DefensesStudy.model_validate(done.document["studies"]["defenses"])
    assert [(row.defense, row.num_finished) for row in study.rows] == [("gradient", 1), ("mean:2,gaussian:0.1", 1)]
    assert study.points == [2]
    assert study.rows[0].accuracy is not None
    assert any("one seed" in note for note in study.notes)
    page = (done.folder / "audit.html").read_text(encoding="utf-8")
    assert "what each protects, and what it costs" in page
    assert "--defense mean:2,gaussian:0.1" in done.document["command"]
    assert str(DATA) not in done.document["command"]


def test_defenses_from_a_file(command: Command, perceptron: Path) -> None:
    Path("riskaudit.toml").write_text('defense = ["mean:2"]\npoints = [1, 7]\n')
    refused = command("study", "defenses", perceptron, *FEW)
    assert refused.code == 2
    assert "--points from 0 to 2" in refused.err
    assert "found 7" in refused.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "--defense"),
        (("--defense", "prun:0.9"), "did you mean 'prune'"),
        (("--defense", "prune:0.9", "--train", "missing.npz"), "missing.npz"),
        (("--defense", "prune:0.9", "--points", "1,x"), "whole numbers"),
        (("--defense", "prune:0.9", "--points", "7"), "--points from 0 to 2"),
        (("--defense", "prune:0.9", "--training-batch", "9"), "--training-batch"),
        # They always run.
        (("--defense", "prune:0.9", "--attacks"), "--attacks"),
    ],
)
def test_defenses_that_do_not_fit(command: Command, perceptron: Path, words: tuple[str, ...], expected: str) -> None:
    done = command("study", "defenses", perceptron, *FEW, *words)
    assert done.code == 2
    assert expected in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not done.folder.exists()


OWN = ("--data", str(DATA), "--limit", "2", "--no-checks", "--out", "out", "--format", "json", "--train", str(DATA),
       "--train-limit", "4", "--training-batch", "2")  # fmt: skip


def test_a_training_run_of_the_study_s_own(command: Command, perceptron: Path) -> None:
    done = command("study", "training", perceptron, *OWN, "--points", "0,1,3", "--attacks", "--attack", "dlg",
                   "--attack-steps", "2", "--format", "html")  # fmt: skip
    assert done.code == 0, done.err
    study = TrainingStudy.model_validate(done.document["studies"]["training"])
    assert [row.step for row in study.rows] == [0, 1, 3]
    assert set(study.rows[0].attack_errors) == {"dlg", "analytic"}
    page = (done.folder / "audit.html").read_text(encoding="utf-8")
    assert "RMSE of analytic" in page
    assert "--points 0,1,3" in done.document["command"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--train", "missing.npz"), "missing.npz"),
        (("--points", "0,x"), "whole numbers"),
        (("--points=-1",), "--points"),
        (("--training-batch", "9"), "--training-batch"),
        (("other.pt",), "--train"),
    ],
)
def test_a_training_run_that_does_not_fit(
    command: Command, perceptron: Path, words: tuple[str, ...], expected: str
) -> None:
    done = command("study", "training", perceptron, *OWN, *words)
    assert done.code == 2
    assert expected in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not done.folder.exists()


@pytest.mark.slow
def test_studies_of_one_model_stand_beside_each_other(command: Command, folder: Path) -> None:
    first = command("study", "training", folder, *COMMON)
    assert first.code == 0, first.err
    second = command("study", "initialization", folder / "step10.pt", *COMMON[:-4], "--out", "both", "--format", "json",
                     "--seeds", "1", "--add-to", "out/audit.json")  # fmt: skip
    assert second.code == 0, second.err
    studies = Outcome(0, "", "", second.folder, (second.folder.parent / "both" / "audit.json").read_bytes()).document
    assert set(studies["studies"]) == {"initialization", "training"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("initialization", str(CHECKPOINT), "--seeds", "0"), "--seeds"),
        (("initialization", str(CHECKPOINT), "--attack-steps", "5"), "--attacks"),
        (("initialization", "missing.pt"), "missing.pt"),
        (("training", "missing.pt"), "missing.pt"),
        (("training", "missing1.pt", "missing2.pt"), "none of the 2 checkpoints"),
        (("training", "."), "found none"),
        (("training",), "CHECKPOINT"),
        (("training", str(CHECKPOINT), "--points", "3"), "--points belongs to a training"),
    ],
)
def test_bad_options(command: Command, words: tuple[str, ...], expected: str) -> None:
    done = command("study", *words, *COMMON)
    assert done.code == 2
    assert expected in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not done.folder.exists()


@pytest.mark.slow
def test_policy_decides_as_in_a_scan(command: Command, folder: Path) -> None:
    done = command("study", "training", folder, *COMMON, "--max-revealed", "1e-6")
    assert done.code == 1
