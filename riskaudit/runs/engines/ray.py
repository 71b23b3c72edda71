"""Workers as tasks of a Ray cluster: one stateless task per shard, which finds everything by the run's folder.

Nothing of the data goes through Ray's object store. A task whose worker or node dies is started again by Ray, up to
three times, and then by the driver, until the shard is finished: how often that can happen is bounded, since a sample
that brings down its process becomes a row that says so.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from riskaudit.errors import EngineError, RiskauditError, SettingsError
from riskaudit.inputs.text import clean
from riskaudit.runs.engines.progress import Shown
from riskaudit.runs.folder import RunFolder
from riskaudit.runs.manifest import Unit

if TYPE_CHECKING:
    from riskaudit.engine import Progress
    from riskaudit.runs.work import Worker

MAX_RETRIES = 3
# Seconds between looks at what others finished.
PAUSE = 1.0


def work_by_ray(
    folder: RunFolder,
    only: int | None = None,
    *,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Work until all is done.

    Args:
        folder: of the run, at a place that all nodes reach.
        only: the number of the one shard to work on; None for all.
        workers: tasks at once, at most; by default as many as the cluster has room for.
        address: of the cluster; by default that of ``RAY_ADDRESS``, else one is started here, which ends with the work.
        progress: called as ``progress(done, total)``, in samples.

    Raises:
        RiskauditError: nothing can be done; the message says what to change.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        _connect(ray, address or os.environ.get("RAY_ADDRESS"), workers)
    try:
        _Driver(ray, folder, only, workers).work(Shown(folder, only, progress))
    finally:
        if started:
            ray.shutdown()


def work_on_shard(path: str, number: int) -> None:
    """One task: see that a shard gets finished."""
    folder = RunFolder.open(path)
    _worker(path, folder.manifest.id).work(number)


@lru_cache(maxsize=1)
def _worker(path: str, _: str) -> Worker:
    """Kept by the process from task to task, with the inputs that it has read."""
    from riskaudit.runs.work import Worker

    return Worker(RunFolder.open(path))


class _Driver:
    """Hands out shards."""

    def __init__(self, ray: Any, folder: RunFolder, only: int | None, workers: int | None) -> None:
        on_gpu = folder.manifest.settings["device"].startswith("cuda")
        self._ray, self._folder, self._workers = ray, folder, workers
        self._task = ray.remote(num_cpus=folder.manifest.threads, num_gpus=1 if on_gpu else 0, max_retries=MAX_RETRIES)(
            work_on_shard
        )
        self._waiting = deque(unit for unit in folder.unfinished if only is None or unit.number == only)
        self._running: dict[Any, Unit] = {}
        self._failures = Counter[int]()

    def work(self, shown: Shown) -> None:
        path = str(self._folder.path.absolute())
        try:
            while self._waiting or self._running:
                while self._waiting and (self._workers is None or len(self._running) < self._workers):
                    unit = self._waiting.popleft()
                    self._running[self._task.remote(path, unit.number)] = unit
                shown.update()
                done, _ = self._ray.wait(list(self._running), timeout=PAUSE)
                for reference in done:
                    self._account_for(reference, self._running.pop(reference))
            shown.update()
        finally:
            for reference in self._running:
                self._ray.cancel(reference)

    def _account_for(self, reference: Any, unit: Unit) -> None:
        """Raise what a task raised; give out again what its workers died of."""
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RiskauditError):
                raise error.cause from None
            raise EngineError(f"a task of Ray failed: {clean(error.cause or error, 300)}") from error
        except self._ray.exceptions.RayError as error:
            self._failures[unit.number] += 1
            # At each of its samples workers may die so often that Ray gives up once.
            if self._failures[unit.number] > unit.size + 2:
                raise EngineError(
                    f"the workers of shard {unit.number} end again and again ({clean(type(error).__name__)}); look at "
                    "the cluster's own logs"
                ) from error
            self._waiting.append(unit)


def _ray() -> Any:
    # Before it is imported: nothing is to be reported to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise SettingsError('`engine=ray` needs Ray; pip install "riskaudit[ray]"') from error
    return ray


def _connect(ray: Any, address: str | None, workers: int | None) -> None:
    own = {"include_dashboard": False, **({} if workers is None else {"num_cpus": workers})}
    try:
        # Without "local" one that was started here before would be looked for.
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else own))
    except Exception as error:  # Ray raises many kinds
        raise EngineError(
            f"can't reach Ray at {address or 'a cluster of its own'} ({clean(error, 200)}); start one with ray start, "
            "or leave out `address`"
        ) from error
