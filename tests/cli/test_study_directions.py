"""``riskaudit study directions`` as a user runs it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scan_cases import CHECKPOINT, DATA, Outcome

from riskaudit.studies.directions.record import DirectionsStudy

STUDY = ("study", "directions", str(CHECKPOINT), "--data", str(DATA), "--limit", "2")
Command = Callable[..., Outcome]


def study_of(outcome: Outcome) -> DirectionsStudy:
    return DirectionsStudy.model_validate(outcome.document["studies"]["directions"])


@pytest.mark.slow
def test_writes_an_audit_with_the_study(command: Command) -> None:
    done = command(*STUDY, "--release", "gaussian:0.01", "--norm", "0.001", "--quantile", "0.5", "--quantile", "1",
                   "--out", "out", "--format", "json", "--format", "html")  # fmt: skip
    assert done.code == 0, done.err
    study = study_of(done)
    assert study.norm == 0.001
    assert [row.direction for row in study.directions[:3]] == ["largest", "quantile 0.5", "random"]
    assert study.attacks == []
    assert not study.reference
    html = (done.folder / "audit.html").read_text()
    assert "Directions and layers" in html
    assert "Noise in another shape" in html
    assert "--quantile 0.5 --quantile 1.0" in done.document["command"]
    assert not list(done.folder.parent.glob("*.trials.jsonl"))


@pytest.mark.slow
def test_attacks_check_the_predictions_and_studies_add_up(command: Command) -> None:
    first = command("study", "fairness", *STUDY[2:], "--out", "first", "--format", "json")
    assert first.code == 0, first.err
    done = command(*STUDY, "--attacks", "--attack-steps", "15", "--no-shaping", "--norm", "0.0001", "--out", "out",
                   "--format", "json", "--add-to", "first/audit.json")  # fmt: skip
    assert done.code == 0, done.err
    study = study_of(done)
    assert study.attacks == ["local", "dlg"]
    assert all(row.attacked for row in study.directions if row.predicted_rmse is not None)
    assert study.shaping == []
    assert set(done.document["studies"]) == {"directions", "fairness"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--norm", "0"), "--norm"),
        (("--quantile", "2"), "--quantile"),
        (("--prune-ratio", "1"), "--prune-ratio"),
        (("--resume",), "--out"),
    ],
)
def test_bad_options(command: Command, arguments: tuple[str, ...], words: str) -> None:
    done = command(*STUDY, *arguments)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.strip().splitlines()) == 1
