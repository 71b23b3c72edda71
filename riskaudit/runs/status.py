"""How far a run is."""

from __future__ import annotations

import statistics
from typing import Literal

from pydantic import Field

from riskaudit.errors import RunError
from riskaudit.results.base import FileRecord, Record
from riskaudit.runs.folder import RunFolder
from riskaudit.runs.leases import Attempt

ShardState = Literal["finished", "leased", "stale", "failed", "left"]


class ShardStatus(Record):
    """One shard.

    ``state`` is "leased" while somebody works on it, "stale" where the worker gives no sign of life, "failed" where all
    attempts so far failed and it is to be tried again, "left" where nobody has begun. ``since`` is the time of the
    present attempt's start by the worker's own clock, ``silent`` the seconds since its last sign of life. ``batch`` is
    the fewest uploads that were worked on at once, ``failed`` the number of samples that have no numbers, where it is
    finished.
    """

    shard: int
    checkpoint: int
    first: int
    samples: int
    state: ShardState
    worker: str | None = None
    since: str | None = None
    silent: float | None = None
    attempts: int = 0
    reason: str | None = None
    seconds: float | None = None
    batch: int | None = None
    failed: int = 0


class RunStatus(FileRecord):
    """The whole run.

    ``failed_samples`` of the finished ones have no numbers, and a reason. ``seconds_left`` is what is left at the pace
    so far, with as many workers as there are leases.
    """

    run: str
    created_at: str
    checkpoints: list[str]
    num_samples: int
    finished_samples: int
    failed_samples: int = 0
    shards: list[ShardStatus] = Field(default_factory=list)
    seconds_left: float | None = None

    @property
    def complete(self) -> bool:
        """Whether all shards are finished."""
        return all(shard.state == "finished" for shard in self.shards)

    def count(self, state: ShardState) -> int:
        """How many shards are in a state."""
        return sum(shard.state == state for shard in self.shards)


def status_of(folder: RunFolder) -> RunStatus:
    """How far a run is.

    Raises:
        RunError: the folder can't be read, or a finished shard isn't this run's.
    """
    manifest, finished, attempts = folder.manifest, folder.store.finished(), folder.leases.attempts()
    shards = []
    for unit in manifest.units:
        place = {"shard": unit.number, "checkpoint": unit.checkpoint, "first": unit.first, "samples": unit.size}
        if unit.number in finished:
            header = folder.store.header(unit)
            found = {"state": "finished", "worker": header.worker, "seconds": header.seconds, "batch": header.batch}
            found["failed"] = header.failed
        else:
            found = _unfinished(folder, attempts.get(unit.number, []))
        shards.append(ShardStatus.model_validate(place | found))
    done = [shard for shard in shards if shard.seconds is not None]
    left = sum(shard.samples for shard in shards if shard.state != "finished")
    pace = [shard.seconds / shard.samples for shard in done if shard.seconds is not None]
    workers = max(1, sum(shard.state == "leased" for shard in shards))
    return RunStatus(
        run=manifest.id,
        created_at=manifest.created_at,
        checkpoints=[checkpoint.name for checkpoint in manifest.checkpoints],
        num_samples=sum(shard.samples for shard in shards),
        finished_samples=sum(shard.samples for shard in done),
        failed_samples=sum(shard.failed for shard in done),
        shards=shards,
        seconds_left=round(statistics.mean(pace) * left / workers, 1) if pace or not left else None,
    )


def _unfinished(folder: RunFolder, attempts: list[Attempt]) -> dict[str, object]:
    if not attempts:
        return {"state": "left"}
    last, lease = attempts[-1], attempts[-1].lease
    failed = [attempt for attempt in attempts if attempt.weight or not attempt.ended]
    about = {
        "attempts": len(attempts),
        "worker": None if lease is None else lease.worker,
        "since": None if lease is None else lease.since,
        "reason": None if lease is None else lease.reason,
    }
    if folder.leases.is_held(attempts):
        return {**about, "state": "leased", "silent": round(last.age, 1)}
    if folder.leases.is_stale(last) or (last.ended and (lease is None or lease.ended is None)):
        return {**about, "state": "stale", "silent": round(last.age, 1)}
    return {**about, "state": "failed" if failed else "left"}


def refuse_incomplete(status: RunStatus) -> None:
    """Refuse to merge what isn't complete.

    Raises:
        RunError: how much is missing, and what to do.
    """
    if not status.complete:
        missing = [shard for shard in status.shards if shard.state != "finished"]
        raise RunError(
            f"{len(missing)} of {len(status.shards)} shards with {sum(shard.samples for shard in missing)} samples "
            "aren't finished; riskaudit run work finishes them, or `partial` counts their samples as not assessed"
        )
