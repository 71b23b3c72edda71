"""Noise of earlier processes' rounds, and sanitised updates, by way of the ledger."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import noise_client
import numpy as np
import pytest
import torch
from guard_cases import NOISE, gradient, guard_of, images, network
from hypothesis import given, settings
from hypothesis import strategies as st

from riskaudit.guard import Ledger, Policy, SecureNoise
from riskaudit.guard.keys import TamperingError
from riskaudit.guard.ledger import noise as noise_records
from riskaudit.guard.ledger.accounts import Account
from riskaudit.guard.ledger.noise import RepetitionError
from riskaudit.guard.noise.memory import NoiseMemory
from riskaudit.guard.noise.traces import Trace, trace_of

LENIENT = Policy(max_revealed=0.999)
SANITISE = Policy(max_revealed=0.01, on_violation="sanitise")
SIZES = [36, 4, 256, 4, 700]


def process(folder: Path, *changes: str, sanitise: bool = False) -> list[list]:
    """Reviews in a process of their own: change, action and reasons of each."""
    given_to = json.dumps([sanitise, str(folder), *changes])
    done = subprocess.run(
        [sys.executable, noise_client.__file__, given_to], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_later_process_knows_the_noise_of_an_earlier_one(tmp_path) -> None:
    assert noise_client.reviews(False, str(tmp_path), "first")[0][1] == "allow"
    said = process(tmp_path, "equal", "negated", "correlated", "bias", "kernel", "weight", "fresh")
    for change, action, reasons in said[:-1]:
        assert (change, action) == (change, "block")
        assert "isn't fresh" in reasons[0], change
    assert said[-1][1] == "allow"
    ledger = Ledger(tmp_path / "l.db", read_only=True, keys=tmp_path / "keys")
    assert (ledger.num_rounds, ledger.problems()) == (2, [])


@pytest.mark.slow
def test_a_later_process_makes_no_second_draw(tmp_path) -> None:
    before = noise_client.reviews(True, str(tmp_path), "first", "again")
    assert [action for _, action, _ in before] == ["sanitise", "sanitise"]
    again, fresh = process(tmp_path, "again", "fresh", sanitise=True)
    assert again[1] == "block"
    assert "no second draw" in again[2][0]
    assert fresh[1] == "sanitise"
    ledger = Ledger(tmp_path / "l.db", read_only=True, keys=tmp_path / "keys")
    assert ledger.num_rounds == 2, "the same bytes again add nothing"
    assert {account.rounds for _, account in ledger.every_account()} == {2}


def test_the_ledger_counts_another_draw_on_the_same_batch(tmp_path) -> None:
    """Fresh noise of the client's on one batch, as it is and sanitised: the totals are of both."""
    model, batch = network(), images(2)
    totals = []
    for policy in (LENIENT, SANITISE, LENIENT):
        guard = guard_of(model, policy, ledger=tmp_path / "l.db", keys=tmp_path / "keys")
        update = gradient(model, batch, NOISE)
        first = guard.review(batch, update, ids=range(2))
        assert first.allowed
        totals.append([one.total_revealed.high for one in first.exposures])
        if policy is SANITISE:
            assert guard.review(batch, update, ids=range(2)).update is first.update
        guard.close()
    assert all(np.all(np.array(later) > earlier) for earlier, later in pairwise(totals))
    with_ledger = Ledger(tmp_path / "l.db", read_only=True, keys=tmp_path / "keys")
    assert {account.rounds for _, account in with_ledger.every_account()} == {3}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("noise", [None, NOISE], ids=["undefended", "some-noise"])
@pytest.mark.parametrize("on_failure", ["block", "warn"])
def test_two_guards_at_once_make_one_draw(tmp_path, monkeypatch, noise, on_failure) -> None:
    """Both look before either has written; what the policy says of failures doesn't matter."""
    policy = Policy(max_revealed=0.01, on_violation="sanitise", on_failure=on_failure)
    model, batch = network(), images(2)
    update = gradient(model, batch, noise or 0.0)
    guards = [guard_of(model, policy, noise, ledger=tmp_path / "l.db", keys=tmp_path / "keys") for _ in range(2)]
    monkeypatch.setattr(noise_records.NoiseRecords, "was_sanitised", lambda *_: False)
    assert guards[0].review(batch, update, ids=range(2)).action == "sanitise"
    monkeypatch.undo()
    monkeypatch.setattr(NoiseMemory, "sanitised", lambda *_: (False, None))
    second = guards[1].review(batch, update, ids=range(2))
    assert (second.action, second.update) == ("block", None)


def recorded(folder: Path, noise: torch.Tensor, sanitised: str | None = None) -> None:
    """One round of a new process, as far as the files can tell, without the review."""
    ledger = Ledger(folder / "l.db", keys=folder / "keys")
    try:
        memory = NoiseMemory(ledger)
        traces = memory.traces([noise], SIZES, sanitised or str(float(noise[0])))
        digest = None if sanitised is None else memory.keyed(sanitised)
        known = ledger.accounts(["a"])
        account = known.get("a", Account.empty(4, 0.3, np.eye(4)[:2])).after(0.1, 2.0, np.eye(2))
        assert ledger.record(known, {"a": account}, "0" * 64, traces=traces, sanitised=digest)
    finally:
        ledger.close()


def fresh() -> torch.Tensor:
    return SecureNoise("gaussian", 1.0).draw(sum(SIZES))


def problems(folder: Path) -> list[str]:
    ledger = Ledger(folder / "l.db", read_only=True, keys=folder / "keys")
    try:
        return ledger.problems()
    finally:
        ledger.close()


@pytest.mark.slow
def test_honest_noise_over_200_processes_is_no_repetition(tmp_path) -> None:
    for number in range(200):
        recorded(tmp_path, fresh(), f"update {number}" if number % 3 == 0 else None)
    assert problems(tmp_path) == []


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM noise WHERE place = 1",
        "DELETE FROM noise WHERE place = 2",
        "DELETE FROM noise WHERE place = 3",
        "DELETE FROM noise",
        "DROP TABLE noise",
        "UPDATE noise SET trace = zeroblob(length(trace)) WHERE place = 2",
        "UPDATE noise SET mac = 3 WHERE place = 3",
        "UPDATE noise SET before = 'x' WHERE place = 1",
        "UPDATE noise SET place = place + 1 WHERE place = 3",
        "UPDATE noise SET place = -place",
        "DELETE FROM buckets WHERE number = 4096",
        "DELETE FROM noise; DELETE FROM buckets WHERE number = 4096",
        "DELETE FROM sanitised",
        "DROP TABLE sanitised",
        "UPDATE sanitised SET digest = zeroblob(32)",
        "UPDATE sanitised SET digest = 'x'",
        "UPDATE sanitised SET place = 7",
        "DELETE FROM sanitised; DELETE FROM buckets WHERE number > 4096",
    ],
)
def test_edits_are_noticed(tmp_path, statement) -> None:
    for number in range(3):
        recorded(tmp_path, fresh(), "an update" if number == 0 else None)
    assert problems(tmp_path) == []
    database = sqlite3.connect(tmp_path / "l.db")
    database.executescript(statement)
    database.close()
    assert problems(tmp_path)
    with pytest.raises(TamperingError):
        recorded(tmp_path, fresh(), "an update" if "sanitised" in statement else None)


def test_an_earlier_table_of_traces_is_noticed(tmp_path) -> None:
    """With MACs of its own that fit."""
    recorded(tmp_path, fresh())
    database = sqlite3.connect(tmp_path / "l.db")
    old = database.execute("SELECT * FROM noise").fetchall()
    bucket = database.execute("SELECT digest FROM buckets WHERE number = 4096").fetchone()
    recorded(tmp_path, fresh())
    database.execute("DELETE FROM noise")
    database.executemany("INSERT INTO noise VALUES (?, ?, ?, ?)", old)
    database.commit()
    assert problems(tmp_path)
    with pytest.raises(TamperingError):
        recorded(tmp_path, fresh())
    database.execute("UPDATE buckets SET digest = ? WHERE number = 4096", bucket)
    database.commit()
    database.close()
    assert problems(tmp_path)
    with pytest.raises(TamperingError):
        recorded(tmp_path, fresh())


def test_records_are_bounded(tmp_path, monkeypatch) -> None:
    """And what fell out of them is no sign of tampering, also to who has read an earlier part."""
    monkeypatch.setattr(noise_records, "TRACES", 5)
    monkeypatch.setattr(noise_records, "PER_BUCKET", 2)
    monkeypatch.setattr(noise_records, "BUCKETS", 1)
    ledger = Ledger(tmp_path / "l.db", keys=tmp_path / "keys")
    noises = [fresh() for _ in range(13)]
    for number, noise in enumerate(noises):
        recorded(tmp_path, noise, str(number))
        if number in (2, 4, 12):
            place, _, traces = ledger.noise._read()
            assert place == number + 1
            assert len(traces) <= 1024
    assert len(ledger._all("SELECT 1 FROM noise")) == 5
    assert len(ledger._all("SELECT 1 FROM sanitised")) == 2
    assert problems(tmp_path) == []
    recorded(tmp_path, noises[0].clone() + 0, "0")
    for place in (11, 12):
        with pytest.raises(RepetitionError):
            recorded(tmp_path, -noises[place])
    with pytest.raises(RepetitionError, match="no second draw"):
        recorded(tmp_path, fresh(), "12")


def test_nothing_is_kept_of_a_round_that_was_not_recorded(tmp_path, monkeypatch) -> None:
    noise = fresh()
    with monkeypatch.context() as patch:
        patch.setattr("riskaudit.guard.ledger.seal.Seal.write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            recorded(tmp_path, noise, "an update")
    recorded(tmp_path, noise, "an update")
    assert problems(tmp_path) == []


@given(sizes=st.lists(st.integers(0, 300), max_size=5))
@settings(max_examples=50, deadline=None)
def test_traces_come_back_from_bytes(sizes) -> None:
    made = trace_of(bytes(32), SecureNoise("gaussian", 1.0).draw(sum(sizes)).numpy(), sizes, b"0" * 32)
    again = Trace.unpacked(made.packed())
    assert (again.digest, again.sizes) == (made.digest, made.sizes)
    for name in ("signs", "heads", "small", "cells"):
        assert np.array_equal(getattr(again, name), getattr(made, name))


def test_the_ledger_alone_says_nothing_of_the_noise(tmp_path) -> None:
    """The same noise is stored as other bytes under every nonce, and the digest of an update isn't its own."""
    noise = fresh()
    stored = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        recorded(folder, noise, "an update")
        database = sqlite3.connect(folder / "l.db")
        stored.append(database.execute("SELECT trace FROM noise").fetchone()[0])
        assert b"an update" not in (folder / "l.db").read_bytes()
        database.close()
    differing = np.bitwise_count(np.frombuffer(stored[0], np.uint8) ^ np.frombuffer(stored[1], np.uint8)).sum()
    assert abs(differing / (8 * len(stored[0])) - 0.5) < 0.03
    ledger = Ledger(tmp_path / "one" / "l.db", keys=tmp_path / "one" / "keys")
    first, second = ledger.noise._encrypted(bytes(4000)), ledger.noise._encrypted(bytes(4000))
    assert first[16:] != second[16:]
    assert ledger.noise._mixed(first[:16], first[16:]) == bytes(4000)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("noise", [None, NOISE], ids=["undefended", "some-noise"])
@pytest.mark.parametrize("policy", [LENIENT, SANITISE], ids=["block", "sanitise"])
@pytest.mark.parametrize("with_ledger", [False, True])
def test_without_a_ledger_the_guard_says_once_that_it_forgets(tmp_path, noise, policy, with_ledger) -> None:
    model, batch = network(), images(2)
    files = {"ledger": tmp_path / "l.db"} if with_ledger else {}
    guard = guard_of(model, policy, noise, log=tmp_path / "l.jsonl", keys=tmp_path / "keys", **files)
    decisions = [guard.review(batch, gradient(model, batch, noise or 0.0)) for _ in range(3)]
    forgets = not with_ledger and decisions[0].allowed
    assert decisions[0].allowed == (noise is not None or policy is SANITISE)
    assert [one.note.startswith("without a ledger") for one in decisions] == [forgets, False, False]
    logged = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [line.get("note", "") for line in logged] == [one.note for one in decisions]
