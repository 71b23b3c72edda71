"""``study fairness`` as a user runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scan_cases import CHECKPOINT, DATA, Outcome, save_images, save_mlp

from riskaudit.studies.fairness.record import FairnessStudy

Command = Callable[..., Outcome]
STUDY = ("study", "fairness", str(CHECKPOINT), "--data", str(DATA), "--release", "gaussian:0.01", "--out", "out")
QUICK = ("--attacks", "--attack-steps", "2")


def study_of(outcome: Outcome) -> FairnessStudy:
    return FairnessStudy.model_validate(outcome.document["studies"]["fairness"])


def save_groups(rows: dict[str, str], name: str = "sites.csv") -> str:
    place = Path("groups")
    place.mkdir(exist_ok=True)
    (place / name).write_text("id,group\n" + "".join(f"{key},{group}\n" for key, group in rows.items()))
    return str(place / name)


def test_study_of_groups(command: Command) -> None:
    groups = {str(place): ("east", "west")[place % 2] for place in range(11)} | {"maria.png": "east"}
    done = command(*STUDY, "--limit", "12", "--group-by", save_groups(groups), "--format", "json", "--format", "html")
    assert done.code == 0, done.err
    study = study_of(done)
    assert study.groups_name == "sites.csv"
    by_group = next(one for one in study.comparisons if one.by == "group")
    assert {group.name: group.num_samples for group in by_group.groups} == {"east": 6, "west": 5, "none": 1}
    assert len(study.notes) == 2
    assert done.document["command"].startswith("riskaudit study fairness digits-lenet.safetensors")
    assert "--group-by sites.csv" in done.document["command"]
    page = (done.folder / "audit.html").read_text()
    assert "Groups of sites.csv compared" in page
    # A name in a file of groups may be that of a person.
    assert "maria" not in page + (done.folder / "audit.json").read_text()


# Attacks of the study itself are run every time: `tests/studies/test_fairness.py`.
@pytest.mark.slow
def test_attacks_are_a_measure_and_kept_by_add_to(command: Command) -> None:
    done = command(*STUDY, "--limit", "3", *QUICK, "--format", "json")
    assert done.code == 0, done.err
    assert [one.measure for one in study_of(done).distributions][-1] == "attack_rmse"
    assert not list(done.folder.parent.glob("*.trials.jsonl"))
    (done.folder / "audit.json").rename("earlier.json")
    again = command(*STUDY, "--limit", "3", "--add-to", "earlier.json", "--format", "json")
    assert again.code == 0, again.err
    assert study_of(again) == study_of(done)
    other = command(*STUDY, "--limit", "3", "--add-to", "earlier.json", "--format", "json", "--release", "gaussian:0.1")
    assert other.code == 2
    assert "of the same release" in other.err


def test_names_of_files_find_their_hashed_ids(command: Command, tmp_path: Path) -> None:
    images = save_images(tmp_path / "images", {"cat": ["ann.png", "bob.png"], "dog": ["cid.png"]})
    model = save_mlp(tmp_path / "mlp.pt", [16, 5, 2])
    words = ("study", "fairness", str(model), "--data", str(images), "--out", "out", "--format", "json")
    done = command(*words, "--group-by", save_groups({"ann.png": "one", "dog/cid.png": "two"}))
    assert done.code == 0, done.err
    by_group = next(one for one in study_of(done).comparisons if one.by == "group")
    assert {group.name for group in by_group.groups} == {"one", "two", "none"}
    assert "ann" not in (done.folder / "audit.json").read_text()


def test_refused(command: Command) -> None:
    for arguments, words in (
        (("--group-by", "nowhere.csv"), "can't find nowhere.csv"),
        (("--add-to", "nowhere.json"), "can't read nowhere.json"),
        (("--group-by", save_groups({"x": "a"})), "none of the 1 ids in sites.csv"),
    ):
        done = command(*STUDY, "--limit", "2", *arguments)
        assert done.code == 2
        assert words in done.err
        assert len([line for line in done.err.strip().splitlines() if line.startswith("riskaudit:")]) == 1
        assert not done.folder.exists()
