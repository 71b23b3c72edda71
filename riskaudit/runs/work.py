"""Working on a run in this process: take a shard that nobody works on, audit it, and again."""

from __future__ import annotations

import time
from typing import final

from riskaudit.audit.provenance import versions
from riskaudit.errors import OutputError
from riskaudit.runs.encoding import encode
from riskaudit.runs.folder import RunFolder
from riskaudit.runs.leases import Attempt, Claim
from riskaudit.runs.manifest import Unit
from riskaudit.runs.opening import OpenedCheckpoint, computing_as, open_checkpoint
from riskaudit.runs.shard import audit_unit, reason_of

# Seconds between looks at shards that others work on, at most.
LONGEST_PAUSE = 2.0


@final
class Worker:
    """Works on a run's shards, one at a time.

    Args:
        folder: of the run.

    Raises:
        RunError: other versions than the run was created with, or a finished shard that isn't whole.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._opened: tuple[int, OpenedCheckpoint] | None = None
        manifest = folder.manifest
        manifest.check_versions(versions())
        finished = folder.store.finished()
        for unit in manifest.units:
            if unit.number in finished:
                folder.store.check(unit)

    def work(self, only: int | None = None) -> None:
        """Until all shards are finished, or one of them: what others work on is waited for, and taken if they die.

        Raises:
            RunError: other inputs than the run was created with.
            RiskauditError: inputs that can't be read.
        """
        manifest = self._folder.manifest
        with computing_as(manifest.threads):
            while True:
                wanted = [unit for unit in self._folder.unfinished if only is None or unit.number == only]
                if not wanted:
                    return
                if not self._one_of(wanted):
                    time.sleep(min(manifest.heartbeat, LONGEST_PAUSE))

    def _one_of(self, units: list[Unit]) -> bool:
        """Try one of the shards that nobody works on; whether there was one."""
        attempts = self._folder.leases.attempts()
        # Samples that have brought down a process come last, so that they hold up nothing.
        for unit in sorted(units, key=lambda unit: len(attempts.get(unit.number, ()))):
            earlier = attempts.get(unit.number, [])
            if self._folder.leases.is_held(earlier):
                continue
            # Before a shard is taken, since inputs that can't be read are no shard's failure.
            opened = self._open(unit.checkpoint)
            claim = self._folder.leases.take(unit, earlier)
            if claim is not None:
                self._try(unit, opened, earlier, claim)
                return True
        return False

    def _try(self, unit: Unit, opened: OpenedCheckpoint, earlier: list[Attempt], claim: Claim) -> None:
        started = time.monotonic()
        try:
            # Another worker may have finished it since the shards were listed.
            if not self._folder.store.has(unit):
                with claim.alive(self._folder.leases.heartbeat):
                    found = audit_unit(opened, unit, earlier, claim)
                    self._folder.store.write(
                        unit,
                        encode(found.rows, found.findings),
                        batch=found.batch,
                        worker=claim.worker,
                        seconds=time.monotonic() - started,
                    )
        except (OSError, OutputError):
            # The folder's failure, not the shard's.
            claim.end("released")
            raise
        except Exception as error:  # whatever the model's code raises; the shard is tried again
            claim.end("failed", reason_of(error))
        except BaseException:
            claim.end("released")
            raise
        else:
            self._folder.leases.clear(unit)

    def _open(self, checkpoint: int) -> OpenedCheckpoint:
        if self._opened is None or self._opened[0] != checkpoint:
            self._opened = None
            self._opened = checkpoint, open_checkpoint(self._folder.manifest, checkpoint)
        return self._opened[1]
