"""How much of a run is finished, shown when it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from riskaudit.runs.folder import RunFolder

if TYPE_CHECKING:
    from riskaudit.engine import Progress


@final
class Shown:
    """The progress of a run, whoever makes it.

    Args:
        folder: of the run.
        only: the number of the one shard that counts; None for all.
        progress: called as ``progress(done, total)``, in samples.
    """

    def __init__(self, folder: RunFolder, only: int | None, progress: Progress | None) -> None:
        self._folder, self._progress, self._last = folder, progress, -1
        self._units = [unit for unit in folder.manifest.units if only is None or unit.number == only]

    @property
    def left(self) -> int:
        """Shards that aren't finished."""
        finished = self._folder.store.finished()
        return sum(unit.number not in finished for unit in self._units)

    def update(self) -> None:
        """Look, and say so where there is more than last time."""
        finished = self._folder.store.finished()
        done = sum(unit.size for unit in self._units if unit.number in finished)
        if done != self._last and self._progress is not None:
            self._progress(done, sum(unit.size for unit in self._units))
        self._last = done
