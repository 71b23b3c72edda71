"""Ledger and log notice edits, rollback, deletion and recomputation, and a kill at any point locks nobody out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from guard_cases import NOISE, gradient, guard_of, images, network
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from riskaudit.errors import GuardError
from riskaudit.guard import AuditLog, Ledger, Policy, keys
from riskaudit.guard.keys import KeyFolder, TamperingError
from riskaudit.guard.ledger.accounts import Account
from riskaudit.guard.ledger.tables import ENDINGS

IDS = ["a", "b", "c"]


def round_of(ledger: Ledger, log: AuditLog) -> None:
    """What a guard does around one upload, without the review."""
    known = ledger.accounts(IDS, log.last())
    after = {name: known.get(name, Account.empty(4, 0.3, np.eye(4)[:2])).after(0.1, 2.0, np.eye(2)) for name in IDS}
    assert ledger.record(known, after, "0" * 64, log.last())
    log.append({"ledger": ledger.position})


def visit(folder: Path) -> None:
    """One round in a process of its own, as far as the files can tell."""
    ledger = Ledger(folder / "l.db", keys=folder / "keys")
    try:
        round_of(ledger, AuditLog(folder / "l.jsonl", keys=folder / "keys"))
    finally:
        ledger.close()


def problems(folder: Path) -> list[str]:
    log = AuditLog(folder / "l.jsonl", keys=folder / "keys")
    try:
        ledger = Ledger(folder / "l.db", read_only=True, keys=folder / "keys")
    except GuardError as error:
        return [str(error)]
    try:
        return ledger.problems(log) + log.problems()
    except GuardError as error:
        return [str(error)]
    finally:
        ledger.close()


def noticed(folder: Path) -> None:
    """By verify, and by what the guard does before it decides."""
    assert problems(folder)
    with pytest.raises(TamperingError, match=r"reset|can't be used"):
        visit(folder)


def edit(folder: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "l.db")) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(3):
        visit(tmp_path)
        snapshot(tmp_path, number)
    assert problems(tmp_path) == []
    return tmp_path


def snapshot(folder: Path, number: int) -> None:
    (folder / f"at{number}").mkdir()
    for name in ("l.db", "l.jsonl"):
        shutil.copy(folder / name, folder / f"at{number}" / name)


def put_back(folder: Path, number: int, *names: str) -> None:
    for name in names:
        shutil.copy(folder / f"at{number}" / name, folder / name)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE samples SET summed = -1e9",
        "UPDATE samples SET summed = summed * 0.5 WHERE id = 'b'",
        "UPDATE samples SET trace = 9e999",
        "UPDATE samples SET rounds = 1",
        "UPDATE samples SET tau = 3.0",
        "UPDATE samples SET core = zeroblob(32)",
        "UPDATE samples SET id = 'z' WHERE id = 'a'",
        "UPDATE samples SET last_round = 1",
        "UPDATE samples SET bucket = bucket + 1",
        "UPDATE samples SET mac = 'text'",
        "DELETE FROM samples WHERE id = 'a'",
        "DELETE FROM samples",
        "DELETE FROM buckets",
        "DELETE FROM rounds WHERE number = 3",
        "DELETE FROM rounds WHERE number = 2",
        "DELETE FROM rounds",
        "UPDATE rounds SET number = number + 1 WHERE number = 3",
        "UPDATE rounds SET log_number = 0 WHERE number = 3",
        "UPDATE rounds SET mac = 5",
        "UPDATE meta SET value = zeroblob(32) WHERE name = 'salt'",
        "UPDATE meta SET value = 'other' WHERE name = 'identity'",
        "DROP TABLE samples",
    ],
)
def test_edits_are_noticed(folder, statement) -> None:
    edit(folder, statement)
    noticed(folder)


def test_an_earlier_row_with_its_own_mac_is_noticed(folder) -> None:
    columns = "rounds, summed, trace, core, last_round, mac"
    edit(
        folder, f"ATTACH '{folder}/at0/l.db' AS old",
        f"UPDATE samples SET ({columns}) = (SELECT {columns} FROM old.samples AS o WHERE o.id = samples.id)",
    )  # fmt: skip
    noticed(folder)


@pytest.mark.parametrize("names", [("l.db",), ("l.jsonl",), ("l.db", "l.jsonl")])
def test_rollback_and_deletion_are_noticed(folder, names) -> None:
    put_back(folder, 0, *names)
    noticed(folder)
    put_back(folder, 2, "l.db", "l.jsonl")
    assert problems(folder) == []
    for name in names:
        (folder / name).unlink()
    noticed(folder)


def test_another_ledger_in_its_place_is_noticed(folder) -> None:
    other = Ledger(folder / "other.db", keys=folder / "keys")
    other.close()
    shutil.copy(folder / "other.db", folder / "l.db")
    with pytest.raises(TamperingError, match="deleted or replaced"):
        visit(folder)


def test_a_link_to_an_empty_file_is_noticed(folder) -> None:
    (folder / "l.db").unlink()
    (folder / "empty").touch()
    (folder / "l.db").symlink_to(folder / "empty")
    with pytest.raises(TamperingError, match="deleted or replaced"):
        visit(folder)


def test_a_log_that_was_made_anew_is_noticed(folder) -> None:
    """All hashes fit, and the key is missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        forged = AuditLog(folder / "forged.jsonl", keys=folder / "thief")
        for entry in AuditLog(folder / "l.jsonl", keys=folder / "keys").entries():
            forged.append({"ledger": entry["ledger"]})
    shutil.copy(forged.path, folder / "l.jsonl")
    noticed(folder)
    lines = [json.loads(line) for line in (folder / "at2" / "l.jsonl").read_text().splitlines()]
    for line in lines:
        line["decision"] = "allow"
    previous = "0" * 64
    from riskaudit.guard.log import _hash, _text

    for line in lines:
        line["previous"] = previous
        line["hash"] = previous = _hash(line)
    (folder / "l.jsonl").write_bytes(b"".join(_text(line) + b"\n" for line in lines))
    noticed(folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_edits_are_noticed(folder, data) -> None:
    put_back(folder, 2, "l.db", "l.jsonl")
    kind = data.draw(st.sampled_from(["column", "delete", "rollback", "line", "cut"]))
    if kind == "column":
        columns = {
            "samples": ["rounds", "dimension", "summed", "trace", "directions", "core", "mac", "id"],
            "rounds": ["number", "update_digest", "num_samples", "root", "mac", "log", "log_head", "created_at"],
            "buckets": ["number", "digest"],
        }
        table = data.draw(st.sampled_from(sorted(columns)))
        column = data.draw(st.sampled_from(columns[table]))
        value = data.draw(st.sampled_from(["-1", "17", "0.5", "'x'", "zeroblob(32)", "1e300"]))
        key = "id" if table == "samples" else "number"
        try:
            edit(folder, f"UPDATE {table} SET {column} = {value} WHERE {key} = (SELECT MAX({key}) FROM {table})")
        except sqlite3.IntegrityError:  # a number of a bucket that is none, which SQLite itself refuses
            reject()
    elif kind == "delete":
        table = data.draw(st.sampled_from(["samples", "rounds", "buckets"]))
        key = "id" if table == "samples" else "number"
        edit(folder, f"DELETE FROM {table} WHERE {key} = (SELECT MAX({key}) FROM {table})")
    elif kind == "rollback":
        one, other = data.draw(st.sampled_from([(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 0), (2, 1), (1, 0)]))
        put_back(folder, one, "l.db")
        put_back(folder, other, "l.jsonl")
    else:
        lines = (folder / "l.jsonl").read_bytes().splitlines(keepends=True)
        place = data.draw(st.integers(0, len(lines) - 1))
        if kind == "cut":
            lines = lines[:place]
        else:
            position = data.draw(st.integers(0, len(lines[-1]) - 2))
            line = bytearray(lines[-1])
            line[position] ^= data.draw(st.integers(1, 127))
            lines[-1] = bytes(line)
        (folder / "l.jsonl").write_bytes(b"".join(lines))
    noticed_by_verify = problems(folder)
    assert noticed_by_verify
    with pytest.raises(GuardError):
        visit(folder)


def test_the_guard_withholds_even_where_failures_pass(tmp_path) -> None:
    model, batch = network(), images()
    policy = Policy(max_revealed=0.9, on_failure="warn")

    def review():
        guard = guard_of(model, policy, ledger=tmp_path / "l.db", log=tmp_path / "l.jsonl")
        decision = guard.review(batch, gradient(model, batch, NOISE), ids=range(6))
        guard.close()
        return decision

    assert review().action == "allow"
    edit(tmp_path, "UPDATE samples SET summed = -1e9")
    decision = review()
    assert (decision.action, decision.update) == ("block", None)
    assert "riskaudit ledger reset" in decision.reasons[0]


def test_the_advice_works(folder) -> None:
    folder_of_keys = KeyFolder(folder / "keys")
    put_back(folder, 0, "l.db")
    log = AuditLog(folder / "l.jsonl", keys=folder_of_keys)
    log.append({"decision": "reset"})
    aside = folder_of_keys.put_aside(folder / "l.db", ENDINGS)
    assert aside is not None
    assert aside.exists()
    visit(folder)
    assert [entry.get("decision") for entry in log.entries()] == [None, None, None, "reset", None]
    assert problems(folder) == []
    put_back(folder, 0, "l.jsonl")
    assert log.reset("reset by hand") is not None
    visit(folder)
    assert log.problems() == []


def test_without_its_key_nothing_is_believed(folder) -> None:
    shutil.move(folder / "keys", folder / "elsewhere")
    assert any("key" in each for each in problems(folder))
    with pytest.raises(TamperingError, match="restore that folder"):
        visit(folder)
    assert not (folder / "keys" / "key").exists()
    shutil.rmtree(folder / "keys", ignore_errors=True)
    shutil.move(folder / "elsewhere", folder / "keys")
    visit(folder)


def test_a_ledger_that_moved_is_known(folder) -> None:
    (folder / "new").mkdir()
    for name in ("l.db", "l.jsonl"):
        shutil.move(folder / name, folder / "new" / name)
    ledger = Ledger(folder / "new" / "l.db", keys=folder / "keys")
    round_of(ledger, AuditLog(folder / "new" / "l.jsonl", keys=folder / "keys"))
    assert ledger.num_rounds == 4


def test_modes(folder) -> None:
    for path in [folder / "l.db", folder / "l.jsonl", *(folder / "keys").iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert (folder / "keys").stat().st_mode & 0o077 == 0
    (folder / "keys" / "key").chmod(0o644)
    with pytest.raises(GuardError, match="chmod 600"):
        visit(folder)


def test_the_key_lies_elsewhere(tmp_path) -> None:
    with pytest.raises(GuardError, match="outside the folder"):
        Ledger(tmp_path / "l.db", keys=tmp_path)


def visit_until(folder: Path, step: int) -> int:
    """A round in a process that is killed at one of its writes or syncs; returns the exit code, 0 where it isn't."""
    child = os.fork()
    if not child:
        left = step

        def counted(function):
            def wrapped(*args, **kwargs):
                nonlocal left
                for call in (lambda: None, lambda: function(*args, **kwargs)):
                    result = call()
                    left -= 1
                    if left == 0:
                        os._exit(9)
                return result

            return wrapped

        keys.write_file, os.fsync, os.close = counted(keys.write_file), counted(os.fsync), counted(os.close)
        visit(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [0, 1])
def test_a_kill_at_any_point_locks_nobody_out(tmp_path, rounds) -> None:
    """Killed at each write and at each sync in turn, until a round goes through."""
    for step in range(1, 200):
        folder = tmp_path / str(step)
        folder.mkdir()
        for _ in range(rounds):
            visit(folder)
        code = visit_until(folder, step)
        assert code in (0, 9)
        visit(folder)
        assert problems(folder) == []
        if code == 0:
            break
    else:
        pytest.fail("no round went through")
    assert step > 10


def test_the_umask_does_not_open_the_files(tmp_path) -> None:
    before = os.umask(0)
    try:
        visit(tmp_path)
    finally:
        os.umask(before)
    test_modes_of = [tmp_path / "l.db", tmp_path / "l.jsonl", *(tmp_path / "keys").iterdir()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in test_modes_of)
