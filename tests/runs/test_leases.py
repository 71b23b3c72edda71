"""One worker at a time has a shard, whatever clocks say, and a dead one's shard is taken by one other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from run_cases import leave_lease

from riskaudit.runs.leases import STALE_HEARTBEATS, Leases, weight_of
from riskaudit.runs.manifest import Unit

UNIT = Unit(3, 0, 6, 2)
HEARTBEAT = 10.0


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    (tmp_path / "leases").mkdir()
    return Leases(tmp_path, HEARTBEAT, private=False)


def attempts(leases: Leases) -> list:
    return leases.attempts().get(UNIT.number, [])


def age(path: Path, seconds: float) -> None:
    """Let the last sign of life be so long ago."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_a_shard_is_taken_once(leases) -> None:
    before = attempts(leases)
    assert leases.take(UNIT, before) is not None
    # One who looked at the same time, and one who looked afterwards.
    assert leases.take(UNIT, before) is None
    assert leases.take(UNIT, attempts(leases)) is None
    assert leases.is_held(attempts(leases))


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_who_look_at_once_one_gets_it(leases, tmp_path, stale) -> None:
    if stale:
        age(leave_lease(tmp_path, UNIT.number, 1), STALE_HEARTBEATS * HEARTBEAT + 1)
    before = attempts(leases)
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: leases.take(UNIT, before), range(32)))
    assert sum(claim is not None for claim in claims) == 1
    assert len(attempts(leases)) == 1 + stale


@pytest.mark.parametrize(("silent", "taken"), [(0.9, False), (1.1, True)])
def test_a_silent_lease_of_another_machine(leases, tmp_path, silent, taken) -> None:
    age(leave_lease(tmp_path, UNIT.number, 1), silent * STALE_HEARTBEATS * HEARTBEAT)
    (attempt,) = attempts(leases)
    assert leases.is_stale(attempt) is taken
    assert (leases.take(UNIT, [attempt]) is not None) is taken


def test_the_clock_of_this_machine_plays_no_part(leases, tmp_path, monkeypatch) -> None:
    leave_lease(tmp_path, UNIT.number, 1)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert leases.is_held(attempts(leases))


def test_a_lease_given_back_is_free_at_once_and_counts_for_nothing(leases) -> None:
    leases.take(UNIT, []).end("released")
    found = attempts(leases)
    assert weight_of(found) == 0
    assert leases.take(UNIT, found) is not None


def test_a_process_of_this_machine_that_is_gone_is_known_to_be(leases, tmp_path) -> None:
    code = (
        "import sys; from pathlib import Path; from riskaudit.runs.leases import Leases; "
        "from riskaudit.runs.manifest import Unit; Leases(Path(sys.argv[1]), 10.0, False).take(Unit(3, 0, 6, 2), [])"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    assert child.wait() == 0
    (attempt,) = attempts(leases)
    assert attempt.ended
    assert not leases.is_stale(attempt)
    assert weight_of([attempt]) == 1
    # Its parent saw it.
    assert leases.end_of(child.pid, "killed")
    assert weight_of(attempts(leases)) == 2
    assert not leases.end_of(child.pid, "killed")


def test_a_lease_without_content_is_judged_by_its_age(leases, tmp_path) -> None:
    path = tmp_path / "leases" / f"{UNIT.name}.1.json"
    path.write_bytes(b"")
    assert leases.take(UNIT, attempts(leases)) is None
    age(path, STALE_HEARTBEATS * HEARTBEAT + 1)
    assert leases.take(UNIT, attempts(leases)) is not None


def test_signs_of_life(leases, tmp_path) -> None:
    claim = leases.take(UNIT, [])
    path = tmp_path / "leases" / f"{UNIT.name}.1.json"
    age(path, 1000)
    with claim.alive(0.01):
        while attempts(leases)[0].age > 100:
            time.sleep(0.01)
    # Another worker finished the shard meanwhile.
    path.unlink()
    with claim.alive(0.01):
        time.sleep(0.05)
    claim.end("released")
    assert attempts(leases) == []


def test_what_was_tried_by_itself_is_written_down(leases) -> None:
    claim = leases.take(UNIT, [])
    claim.trying(7)
    claim.end("failed", "RuntimeError in the audit")
    found = attempts(leases)
    assert (weight_of(found), weight_of(found, 7), weight_of(found, 6)) == (2, 2, 0)
    leases.clear(UNIT)
    assert attempts(leases) == []
