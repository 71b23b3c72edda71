"""The ledger: an upper end of what all rounds together reveal, in a file that survives."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from guard_cases import NOISE, PRIOR_STD, gradient, guard_of, images, network, spectra
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from riskaudit.errors import GuardError
from riskaudit.guard import Ledger, Policy
from riskaudit.guard.identifiers import hidden_id
from riskaudit.guard.ledger import Account
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.linalg import Spectrum
from riskaudit.release import Batch, PerSampleRelease


def entry(hessian: np.ndarray, noise: float, directions: np.ndarray, tau: float) -> tuple[float, float, np.ndarray]:
    information = hessian / noise**2
    values = np.linalg.eigvalsh(information)
    return (
        float(np.sum(values / (values + tau**-2))),
        float(np.trace(information)),
        directions @ information @ directions.T,
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 5), st.integers(1, 6))
def test_the_bound_is_never_below_the_truth(seed, dimension, count, rounds) -> None:
    random, tau = np.random.default_rng(seed), 0.3
    count = min(count, dimension)
    directions = np.linalg.qr(random.normal(size=(dimension, dimension)))[0][:count]
    account, total = Account.empty(dimension, tau, directions), np.zeros((dimension, dimension))
    for _ in range(rounds):
        root = random.normal(size=(dimension, dimension)) * random.exponential(size=dimension) ** 3
        hessian, noise = root @ root.T, random.exponential() + 1e-3
        account = account.after(*entry(hessian, noise, account.directions, tau))
        total += hessian / noise**2
    values = np.linalg.eigvalsh(total).clip(0)
    exact = float(np.mean(values / (values + tau**-2)))
    assert account.rounds == rounds
    assert exact <= account.revealed * (1 + 1e-6) + 1e-9
    assert account.rmse <= tau * (1 - exact) ** 0.5 + 1e-6


def test_directions_that_repeat_are_counted_once() -> None:
    """The sketch is worth its keep: ten rounds that all see one direction reveal one direction."""
    tau, direction = 1.0, np.eye(10)[:1]
    hessian = 1e6 * direction.T @ direction
    account = Account.empty(10, tau, direction)
    for _ in range(10):
        account = account.after(*entry(hessian, 1.0, account.directions, tau))
    assert account.summed == pytest.approx(10, rel=1e-5)
    assert account.revealed == pytest.approx(0.1, rel=1e-3)


@pytest.mark.slow
def test_many_rounds_of_a_guard_against_the_dense_sum(tmp_path) -> None:
    model, batch = network(), images()
    guard = guard_of(model, Policy(max_total_revealed=1.0), ledger=tmp_path / "ledger.db")
    total = torch.zeros(6, 64, 64, dtype=torch.float64)
    for number in range(4):
        decision = guard.review(batch, gradient(model, batch, NOISE, number), ids=range(6))
        assert decision.action == "allow", decision.reasons
        double = network().double()
        double.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
        jacobian = GenericJacobian(PerSampleRelease(double, nn.CrossEntropyLoss()), Batch(batch[0].double(), batch[1]))
        spectrum = Spectrum.of(jacobian.hessian())
        total += spectrum.vectors * spectrum.values[:, None] @ spectrum.vectors.mT / (6 * NOISE) ** 2
        values = torch.linalg.eigvalsh(total).clamp_min(0)
        exact = (values / (values + PRIOR_STD**-2)).mean(-1).tolist()
        for one, value in zip(decision.exposures, exact, strict=True):
            assert value <= one.total_revealed.high
            assert one.revealed.high <= one.total_revealed.high + 1e-9
        slopes = gradient(model, batch)
        with torch.no_grad():
            for value, slope in zip(model.parameters(), slopes, strict=True):
                value.sub_(0.5 * slope)
    assert {account.rounds for _, account in guard.ledger.every_account()} == {4}


def test_blocked_rounds_are_not_charged(tmp_path) -> None:
    model, batch = network(), images()
    guard = guard_of(model, Policy(max_revealed=0.01), ledger=tmp_path / "ledger.db")
    assert guard.review(batch, gradient(model, batch, NOISE), ids=range(6)).action == "block"
    assert guard.ledger.num_rounds == 0
    assert list(guard.ledger.every_account()) == []


def test_the_same_picture_is_the_same_sample_without_ids(tmp_path) -> None:
    model, batch = network(), images()
    guard = guard_of(model, Policy(max_revealed=0.9), ledger=tmp_path / "ledger.db")
    guard.review(batch, gradient(model, batch, NOISE))
    part = (batch[0][:2], batch[1][:2])
    guard.review(part, gradient(model, part, NOISE))
    assert sorted(account.rounds for _, account in guard.ledger.every_account()) == [1, 1, 1, 1, 2, 2]


def test_names_do_not_show(tmp_path) -> None:
    model, batch = network(), images()
    guard = guard_of(model, Policy(max_revealed=0.9), ledger=tmp_path / "ledger.db")
    guard.review(batch, gradient(model, batch, NOISE), ids=[f"patient-{number}" for number in range(6)])
    guard.close()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"patient" not in content
    assert (tmp_path / "ledger.db").stat().st_mode & 0o077 == 0


def test_a_sample_twice_in_a_batch(tmp_path) -> None:
    model, batch = network(), images()
    guard = guard_of(model, Policy(max_revealed=0.9), ledger=tmp_path / "ledger.db")
    decision = guard.review(batch, gradient(model, batch, NOISE), ids=[0, 1, 2, 3, 4, 4])
    assert decision.action == "allow"
    assert "2 samples" in decision.reasons[1]
    assert len(list(guard.ledger.every_account())) == 5


def account(number: int) -> Account:
    return Account(number, 4, 0.3, 0.1 * number, 2.0 * number, np.eye(4)[:2], np.eye(2) * number)


def test_a_round_that_somebody_else_changed_is_not_written(tmp_path) -> None:
    one, other = Ledger(tmp_path / "ledger.db"), Ledger(tmp_path / "ledger.db")
    assert one.record({}, {"a": account(1)}, "x") == 1
    assert other.record({}, {"a": account(1)}, "x") is None
    assert other.record(other.accounts(["a"]), {"a": account(2)}, "x") == 2
    assert one.accounts(["a"])["a"].rounds == 2


def test_two_guards_on_one_ledger(tmp_path) -> None:
    """No round is lost: what both have sent adds up."""
    model, batch = network(), images()
    guards = [guard_of(model, Policy(max_total_revealed=1.0), ledger=tmp_path / "ledger.db") for _ in range(2)]
    for number in range(3):
        for guard in guards:
            assert guard.review(batch, gradient(model, batch, NOISE, number), ids=range(6)).action == "allow"
    assert {one.rounds for _, one in guards[0].ledger.every_account()} == {6}


PROCESS = """
import sys
import numpy as np
from riskaudit.guard.ledger import Account, Ledger
ledger = Ledger(sys.argv[1])
print("ready", flush=True)
done = 0
while done < int(sys.argv[2]):
    known = ledger.accounts(["a", "b"])
    after = {
        name: known.get(name, Account.empty(64, 0.3, np.eye(64)[:4])).after(0.01, 1.0, np.eye(4))
        for name in ("a", "b")
    }
    done += ledger.record(known, after, "0" * 64) is not None
"""


def start(path, count) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(path), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_share_a_ledger(tmp_path) -> None:
    path = tmp_path / "ledger.db"
    workers = [start(path, 25) for _ in range(3)]
    for worker in workers:
        worker.communicate(timeout=120)
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    ledger = Ledger(path)
    assert ledger.problems() == []
    assert {one.rounds for _, one in ledger.every_account()} == {75}
    assert ledger.num_rounds == 75


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_whole_after_kills_in_the_middle_of_writing(tmp_path, kills) -> None:
    path, random = tmp_path / "ledger.db", np.random.default_rng(0)
    for _ in range(kills):
        with start(path, 10**9) as worker:
            assert worker.stdout is not None
            worker.stdout.readline()
            time.sleep(float(random.uniform(0.0, 0.3)))
            worker.send_signal(signal.SIGKILL)
        ledger = Ledger(path)
        assert ledger.problems() == []
        assert {one.rounds for _, one in ledger.every_account()} <= {ledger.num_rounds}
        ledger.close()


def test_export_has_no_directions(tmp_path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.record({}, {"a": account(1)}, "x")
    exported = json.loads(ledger.export())
    assert exported["samples"] == [
        {
            "id": "a", "rounds": 1, "prior_std": 0.3, "revealed_at_most": pytest.approx(account(1).revealed),
            "posterior_rmse_at_least": pytest.approx(account(1).rmse),
        }
    ]  # fmt: skip
    assert exported["rounds"][0]["round"] == 1


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE samples SET trace = -1", "out of range"),
        ("UPDATE samples SET directions = zeroblob(32)", "orthonormal"),
        ("UPDATE samples SET last_round = 9", "isn't there"),
        ("UPDATE samples SET core = zeroblob(3)", "can't be read"),
    ],
)
def test_flaws_are_named(tmp_path, statement, words) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    ledger.record({}, {"a": account(1)}, "x")
    assert ledger.problems() == []
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()
    assert any(words in each for each in Ledger(path).problems())


def test_something_else_is_refused(tmp_path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(GuardError, match="can't be used"):
        Ledger(path)
    with pytest.raises(GuardError, match="can't be used"):
        Ledger(tmp_path / "missing" / "ledger.db")
    assert [each.name for each in tmp_path.iterdir()] == ["ledger.db"]


@pytest.mark.parametrize(
    "name",
    [":memory:", "file::memory:", "file::memory:?cache=shared", "file:a.db?mode=memory", "FILE:x", ":x", "", " "],
)
def test_a_ledger_that_would_forget_is_refused(tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    policy = Policy(max_total_revealed=0.5)
    with pytest.raises(GuardError, match="in memory forgets"):
        guard_of(network(), policy, ledger=name)
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_no_ledger(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in ("/dev/null", tmp_path, tmp_path / "pipe"):
        with pytest.raises(GuardError, match="a file for the ledger"):
            guard_of(network(), Policy(max_total_revealed=0.5), ledger=place)


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(200)])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_ledger_that_is_refused_lets_go_of_its_file(tmp_path, monkeypatch, content, read_only) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    if not content:
        monkeypatch.setattr(
            "riskaudit.guard.ledger.ledger.create_tables", lambda *_: (_ for _ in ()).throw(GuardError("no"))
        )
    with pytest.raises(GuardError):
        Ledger(path, read_only=read_only)
    opened = [str(place.resolve()) for place in Path("/proc/self/fd").iterdir()]
    assert not [name for name in opened if name.startswith(str(tmp_path.resolve()))]


def test_another_prior_needs_another_ledger(tmp_path) -> None:
    """Shares under different priors can't be added."""
    model, batch = network(), images()
    path = tmp_path / "ledger.db"
    policy = Policy(max_revealed=1.0)
    assert guard_of(model, policy, ledger=path).review(batch, gradient(model, batch, NOISE), ids=range(6)).allowed
    other = guard_of(model, policy, ledger=path, prior_std=3.0)
    decision = other.review(batch, gradient(model, batch, NOISE), ids=range(6))
    assert decision.action == "block"
    assert "ledger of its own" in decision.reasons[0]


def test_an_assessment_in_old_directions_is_made_anew(tmp_path) -> None:
    model, batch = network(), images()
    guard = guard_of(model, Policy(max_total_revealed=1.0), ledger=tmp_path / "ledger.db")
    both = [guard.assess(batch, ids=range(6)) for _ in range(2)]
    for assessed in both:
        assert guard.review(batch, gradient(model, batch, NOISE), ids=range(6), assessment=assessed).allowed
    eigenvalues = spectra(model, batch) / (6 * NOISE) ** 2
    for place, (_, account) in enumerate(sorted(guard.ledger.every_account(), key=lambda pair: order(guard, pair[0]))):
        assert account.rounds == 2
        assert float(np.linalg.eigvalsh(account.core)[-1]) <= 2 * float(eigenvalues[place].max()) * (1 + 1e-4)


def order(guard, identifier: str) -> int:
    return [hidden_id(str(number), guard.ledger.salt) for number in range(6)].index(identifier)


def test_looking_changes_nothing(tmp_path) -> None:
    path = tmp_path / "cookies.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE cookies (name TEXT)")
    database.commit()
    database.close()
    before = path.read_bytes()
    for options in ({"read_only": True}, {}):
        with pytest.raises(GuardError):
            Ledger(path, **options)
        assert path.read_bytes() == before
