"""A run's folder: its manifest, its finished shards and its leases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from riskaudit.errors import RunError, SettingsError
from riskaudit.runs.leases import LEASES, Leases
from riskaudit.runs.manifest import MANIFEST, RunManifest, Unit
from riskaudit.runs.store import SHARDS, ShardStore


@dataclass(frozen=True, eq=False)
class RunFolder:
    """What everyone who works on a run reads and writes.

    Attributes:
        path: of the folder.
        manifest: what is audited and how.
        store: finished shards.
        leases: who works on what.
    """

    path: Path
    manifest: RunManifest
    store: ShardStore
    leases: Leases

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of a run.

        Raises:
            RunError: it is none.
        """
        path = Path(path)
        manifest = RunManifest.read(path / MANIFEST)
        try:
            # Tools that copy folders may leave out empty ones.
            for name in (SHARDS, LEASES):
                (path / name).mkdir(mode=0o700 if manifest.private else 0o777, exist_ok=True)
        except OSError as error:
            raise RunError(f"can't use {path} as a run: {error.strerror or error}") from error
        leases = Leases(path, manifest.heartbeat, manifest.private)
        return cls(path, manifest, ShardStore(path, manifest), leases)

    def unit(self, number: int) -> Unit:
        """One of the shards.

        Raises:
            SettingsError: there is none of this number.
        """
        units = self.manifest.units
        if not 0 <= number < len(units):
            raise SettingsError(f"expected `shard` between 0 and {len(units) - 1}, found {number}")
        return units[number]

    @property
    def unfinished(self) -> list[Unit]:
        """Shards that aren't finished, in their order."""
        finished = self.store.finished()
        return [unit for unit in self.manifest.units if unit.number not in finished]
