"""Who works on which shard: lease files, of which the one with the highest generation counts.

A worker takes a shard by making the lease file of the next generation, with O_EXCL, so that of several one succeeds:
taking a free shard, one that was given back and one whose worker died are the same step, and nothing is ever removed
that another worker may hold. While it works it touches its file every few seconds. A lease is stale when its last touch
is long past by the clock of whoever keeps the files: its age is the difference of two modification times there, so that
clocks of machines needn't agree. A worker that was only slow, and whose shard another one took, does no harm: both
write the same rows.

Leases of attempts that failed stay until the shard is finished: they say what was tried.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, final

from pydantic import ValidationError

from riskaudit.errors import OutputError
from riskaudit.files import write_file
from riskaudit.formatting import present_time
from riskaudit.results.base import Record
from riskaudit.runs.manifest import Unit

LEASES = "leases"
# A lease without a sign of life for so many heartbeats is stale.
STALE_HEARTBEATS = 12


class Lease(Record):
    """One attempt at a shard.

    ``machine`` and ``process`` name the process so that another one of the same machine sees whether it lives.
    ``upload`` is the one being tried by itself. ``ended`` says how the attempt ended, where somebody could say:
    "released" in good order, "failed" with an error, "died" where the process's parent saw it end.
    """

    worker: str
    machine: str | None
    process: str
    since: str
    upload: int | None = None
    ended: Literal["released", "failed", "died"] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Attempt:
    """A lease as it was found.

    Attributes:
        path: of its file.
        generation: 1 for the first attempt at the shard.
        age: seconds since the last sign of life.
        lease: what it says; None where its worker died before it could.
    """

    path: Path
    generation: int
    age: float
    lease: Lease | None

    @property
    def ended(self) -> bool:
        """Whether the attempt is known to be over."""
        return self.lease is not None and (self.lease.ended is not None or is_dead(self.lease))

    @property
    def weight(self) -> int:
        """How far it speaks against the shard: 2 for a failure that was seen, 1 for one that may have other causes."""
        if self.lease is None or self.lease.ended is None:
            return 1
        return 0 if self.lease.ended == "released" else 2


@final
class Leases:
    """Leases of a run.

    Args:
        folder: of the run.
        heartbeat: seconds between signs of life.
        private: files are for their owner alone.
    """

    def __init__(self, folder: Path, heartbeat: float, private: bool) -> None:
        self._folder, self.heartbeat, self._private = folder / LEASES, heartbeat, private

    def attempts(self) -> dict[int, list[Attempt]]:
        """All attempts by the number of the shard, in their order."""
        now, found = self._now(), defaultdict[int, list[Attempt]](list)
        for path in sorted(self._folder.glob("[0-9]*.json")):
            number, _, generation = path.stem.partition(".")
            with suppress(OSError, ValueError):
                found[int(number)].append(_attempt(path, int(generation), now))
        return {number: sorted(each, key=lambda attempt: attempt.generation) for number, each in found.items()}

    def is_held(self, attempts: Sequence[Attempt]) -> bool:
        """Whether somebody works on the shard that these are of."""
        return bool(attempts) and not attempts[-1].ended and not self.is_stale(attempts[-1])

    def is_stale(self, attempt: Attempt) -> bool:
        """Whether a lease that nobody ended is without a sign of life."""
        return not attempt.ended and attempt.age > STALE_HEARTBEATS * self.heartbeat

    def take(self, unit: Unit, attempts: Sequence[Attempt]) -> Claim | None:
        """The shard, unless somebody works on it; ``attempts`` are those so far.

        Raises:
            OutputError: leases can't be written.
        """
        if self.is_held(attempts):
            return None
        generation = attempts[-1].generation + 1 if attempts else 1
        path = self._folder / f"{unit.name}.{generation}.json"
        lease = Lease(
            worker=_name(os.getpid()),
            machine=_machine(),
            process=_process(os.getpid()),
            since=present_time(),
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if self._private else 0o666)
        except FileExistsError:
            return None
        except OSError as error:
            raise OutputError(f"can't write {path}: {error.strerror or error}") from error
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(_content(lease))
        return Claim(path, lease, self._private)

    def clear(self, unit: Unit) -> None:
        """Remove the leases of a finished shard."""
        for path in self._folder.glob(f"{unit.name}.*.json"):
            path.unlink(missing_ok=True)

    def end_of(self, pid: int, reason: str) -> bool:
        """Say of a process of this machine that was seen to end that it did; whether it held a lease."""
        held = [
            attempts[-1]
            for attempts in self.attempts().values()
            if attempts[-1].lease is not None
            and attempts[-1].lease.ended is None
            and (attempts[-1].lease.machine, attempts[-1].lease.worker) == (_machine(), _name(pid))
        ]
        for attempt in held:
            assert attempt.lease is not None
            ended = attempt.lease.model_copy(update={"ended": "died", "reason": reason})
            write_file(attempt.path, _content(ended), private=self._private)
        return bool(held)

    def _now(self) -> float:
        """The time by the clock that files get theirs from."""
        probe = self._folder / f".clock.{secrets.token_hex(6)}"
        try:
            with probe.open("wb") as stream:
                return os.fstat(stream.fileno()).st_mtime
        except OSError:
            # One who may only read can't do better.
            return datetime.now(UTC).timestamp()
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


@final
class Claim:
    """A shard that this process works on."""

    def __init__(self, path: Path, lease: Lease, private: bool) -> None:
        self._path, self._lease, self._private = path, lease, private

    @property
    def worker(self) -> str:
        """Who works."""
        return self._lease.worker

    @contextmanager
    def alive(self, heartbeat: float) -> Iterator[None]:
        """Give signs of life meanwhile."""
        finished = threading.Event()

        def beat() -> None:
            while not finished.wait(heartbeat):
                # Where another worker has finished the shard the file is gone.
                with suppress(OSError):
                    os.utime(self._path)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()

    def trying(self, upload: int | None) -> None:
        """Say which upload is tried by itself, before its process can die of it."""
        self._write(upload=upload)

    def end(self, how: Literal["released", "failed"], reason: str | None = None) -> None:
        """Give the shard back."""
        if self._path.exists():
            self._write(ended=how, reason=reason)

    def _write(self, **changes: Any) -> None:
        self._lease = self._lease.model_copy(update=changes)
        write_file(self._path, _content(self._lease), private=self._private)


def weight_of(attempts: Sequence[Attempt], upload: int | None = None) -> int:
    """How far attempts speak against a shard, or against one of its uploads; two that were seen to fail have 4."""
    return sum(
        attempt.weight
        for attempt in attempts
        if upload is None or (attempt.lease is not None and attempt.lease.upload == upload)
    )


def _name(pid: int) -> str:
    """A process of this machine, for people."""
    return f"{platform.node()}:{pid}"


def _attempt(path: Path, generation: int, now: float) -> Attempt:
    # Opened, not only looked at, since network file systems ask the server then.
    with path.open("rb") as stream:
        content, age = stream.read(), max(0.0, now - os.fstat(stream.fileno()).st_mtime)
    try:
        lease = Lease.model_validate(json.loads(content))
    except (ValueError, ValidationError, RecursionError):
        lease = None
    return Attempt(path, generation, age, lease)


def _content(lease: Lease) -> bytes:
    return json.dumps(lease.model_dump(mode="json")).encode() + b"\n"


def is_dead(lease: Lease) -> bool:
    """Whether a lease's process is known to have ended: one of this machine that isn't there."""
    machine = _machine()
    if machine is None or lease.machine != machine:
        return False
    pid = lease.process.partition("@")[0]
    return not pid.isdecimal() or _process(int(pid)) != lease.process


@cache
def _machine() -> str | None:
    """This boot of this machine, as its processes number themselves; None where the system doesn't say (not Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return None
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:16]


def _process(pid: int) -> str:
    """A process by its number and the time of its start, since numbers are used again."""
    try:
        # The name, which stands in parentheses, may hold anything.
        entries = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return f"{pid}@"
    # A process that has ended and that its parent hasn't asked after is a zombie.
    return f"{pid}@" if entries[0] == "Z" else f"{pid}@{entries[19]}"
