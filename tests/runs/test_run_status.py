"""What is said of a run that isn't complete."""

from __future__ import annotations

import os

from run_cases import create, leave_lease, work_here


def test_every_state(tmp_path) -> None:
    folder = tmp_path / "run"
    run = create(folder, limit=5, shard=1)
    assert [shard.state for shard in run.status().shards] == ["left"] * 5
    work_here(folder, 0)
    leave_lease(folder, 1, 1)
    stale = leave_lease(folder, 2, 1)
    os.utime(stale, (1, 1))
    leave_lease(folder, 3, 1, ended="released")
    leave_lease(folder, 4, 1, ended="failed", reason="RuntimeError in the audit")
    status = run.status()
    assert [shard.state for shard in status.shards] == ["finished", "leased", "stale", "left", "failed"]
    assert status.shards[1].worker == "elsewhere:1"
    assert status.shards[4].reason == "RuntimeError in the audit"
    assert (status.num_samples, status.finished_samples, status.complete) == (5, 1, False)
    assert status.seconds_left is not None
    assert status.seconds_left > 0
    assert type(status).model_validate_json(status.to_json()) == status
