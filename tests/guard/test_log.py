"""The log: what was written can't be changed unnoticed, and a torn line doesn't stop it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from riskaudit.errors import GuardError
from riskaudit.guard import AuditLog


@pytest.fixture
def log(tmp_path) -> AuditLog:
    log = AuditLog(tmp_path / "log.jsonl")
    for number in range(5):
        log.append({"round": number, "decision": "allow"})
    return log


def test_whole(log) -> None:
    assert log.problems() == []
    assert [entry["number"] for entry in log.entries()] == [1, 2, 3, 4, 5]
    assert log.head == list(log.entries())[-1]["hash"]
    assert log.path.stat().st_mode & 0o077 == 0


def rewrite(log: AuditLog, change) -> None:
    lines = log.path.read_text().splitlines()
    log.path.write_text("\n".join(change(lines)) + "\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [*lines[:2], lines[2].replace("allow", "block"), *lines[3:]], "line 3 was changed"),
        (lambda lines: [*lines[:2], *lines[3:]], "line 3 doesn't follow"),
        (lambda lines: [*lines[:2], lines[3], lines[2], lines[4]], "line 3 doesn't follow"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "line 3 doesn't follow"),
        (lambda lines: [*lines[:2], "{broken", *lines[2:]], "line 3 isn't JSON"),
        (lambda lines: lines[1:], "line 1 doesn't follow"),
        (lambda lines: [*lines[:4], "x" + lines[4][1:]], "line 5 isn't JSON"),
        (lambda lines: [*lines[:4], '{"decision": "block", ' + lines[4][1:]], "line 5 was changed"),
        (lambda lines: [*lines[:4], lines[4].replace('"round": 4', '"round": NaN')], "line 5 was changed"),
    ],
    ids=["changed", "removed", "swapped", "inserted", "broken", "beheaded", "last", "twice", "nan"],
)
def test_tampering_shows(log, change, words) -> None:
    rewrite(log, change)
    assert any(words in each for each in log.problems())


def test_a_line_with_a_new_hash_shows_in_the_next_one(log) -> None:
    def forge(lines):
        entry = json.loads(lines[1])
        entry["decision"] = "block"
        forged = AuditLog(log.path.parent / "other.jsonl")
        forged.append({name: entry[name] for name in ("round", "decision")})
        line = json.loads(forged.path.read_text())
        return [lines[0], json.dumps(line), *lines[2:]]

    rewrite(log, forge)
    assert log.problems()


def test_lines_cut_off_the_end_show_against_a_hash_noted_earlier(log) -> None:
    head = log.head
    rewrite(log, lambda lines: lines[:3])
    assert "the counter is at 5" in log.problems()[0]
    assert "cut off" in log.problems(head)[0]
    assert not any("cut off" in each for each in log.problems(log.head))


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_line_is_closed_and_named(log, kept) -> None:
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole.splitlines()[0][:kept])
    assert log.problems() == [], "a kill is no tampering"
    log.append({"round": 5})
    assert log.problems() == []
    last = list(log.entries())[-1]
    assert last["number"] == 6
    assert "torn" in last


def test_a_torn_line_that_was_changed_later_shows(log) -> None:
    log.path.write_bytes(log.path.read_bytes() + b'{"half": 1')
    log.append({"round": 5})
    log.path.write_bytes(log.path.read_bytes().replace(b'{"half": 1', b'{"half": 2'))
    assert log.problems()


def test_processes_share_a_log(tmp_path) -> None:
    code = (
        "import sys; from riskaudit.guard.log import AuditLog\n"
        "log = AuditLog(sys.argv[1])\n"
        "for number in range(40): log.append({'round': number})\n"
    )
    path = tmp_path / "log.jsonl"
    workers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    assert AuditLog(path).problems() == []
    assert len(list(AuditLog(path).entries())) == 120


def test_long_lines(tmp_path) -> None:
    log = AuditLog(tmp_path / "log.jsonl")
    for size in (10, 100_000, 300_000, 10):
        log.append({"text": "x" * size})
    assert log.problems() == []


def test_a_file_of_something_else(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("a diary\nof mine\n")
    with pytest.raises(GuardError, match="isn't a log"):
        AuditLog(path).append({})
    assert path.read_text() == "a diary\nof mine\n"
    with pytest.raises(GuardError, match="can't read"):
        AuditLog(tmp_path / "absent.jsonl").problems()


def test_a_tear_that_took_only_the_end_of_the_line(log) -> None:
    log.path.write_bytes(log.path.read_bytes()[:-1])
    log.append({"round": 5})
    assert log.problems() == []
    assert [entry["number"] for entry in log.entries()] == [1, 2, 3, 4, 5, 6]
