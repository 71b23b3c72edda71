"""A killed study goes on; a file of another study is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from riskaudit.engine.journal import Journal, fingerprint
from riskaudit.errors import OutputError, SettingsError


def test_trials_come_back(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    log = Journal(path, "one")
    log.add("a 0", [{"rmse": 0.1}])
    log.add("a 1", None)
    again = Journal(path, "one", resume=True)
    assert "a 0" in again
    assert again["a 0"] == [{"rmse": 0.1}]
    assert "a 1" in again
    assert "b" not in again


def test_a_line_cut_off_by_a_kill_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    log = Journal(path, "one")
    log.add("a", 1)
    log.add("b", 2)
    whole = path.read_text()
    for length in range(len(whole.splitlines()[0]) + 1, len(whole)):
        path.write_text(whole[:length])
        found = Journal(path, "one", resume=True)
        assert ("b" in found) <= ("a" in found)
        path.write_text(whole)


def test_another_study_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    Journal(path, "one").add("a", 1)
    with pytest.raises(SettingsError, match="another study"):
        Journal(path, "two", resume=True)
    assert '"a"' in path.read_text()


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    Journal(path, "one").add("a", 1)
    log = Journal(path, "two")
    assert "a" not in log


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="`log`"):
        Journal(tmp_path / "file" / "trials.jsonl", "one")


def test_fingerprint_depends_on_content_alone() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
