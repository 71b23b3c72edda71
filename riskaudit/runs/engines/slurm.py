"""Workers as jobs of a SLURM array, by submitit; as processes of this machine where there is no SLURM.

Each job works on whatever shard is free, so that an array of any size does all of them. A job that is requeued goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from riskaudit.errors import EngineError, RiskauditError, SettingsError
from riskaudit.inputs.text import clean
from riskaudit.runs.engines.processes import WorkerProcesses
from riskaudit.runs.engines.progress import Shown
from riskaudit.runs.folder import RunFolder

if TYPE_CHECKING:
    from riskaudit.engine import Progress

JOBS = "slurm"
# submitit's own is 5.
TIMEOUT_MINUTES = 24 * 60
PAUSE = 1.0


class Job:
    """What a job does; submitit calls it, and asks it what to do after a requeue."""

    def __call__(self, path: str, only: int | None) -> str | None:
        """Work; returns why nothing could be done, if so."""
        try:
            WorkerProcesses(RunFolder.open(path), 1, only).work()
        except RiskauditError as error:
            return str(error)
        return None

    def checkpoint(self, path: str, only: int | None) -> Any:
        """The same again: finished shards are finished."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, path, only)


def work_by_slurm(
    folder: RunFolder,
    only: int | None = None,
    *,
    workers: int = 1,
    parameters: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Submit the jobs and wait until they have ended. An interrupt leaves them in the queue.

    Args:
        folder: of the run, at a place that all nodes reach; the jobs' own files go to its ``slurm``.
        only: the number of the one shard to work on; None for all.
        workers: jobs of the array.
        parameters: of submitit's executor, such as ``timeout_min`` or ``slurm_partition``.
        progress: called as ``progress(done, total)``, in samples.

    Raises:
        RiskauditError: nothing can be done; the message says what to change.
    """
    try:
        import submitit
    except ImportError as error:
        raise SettingsError('`engine=slurm` needs submitit; pip install "riskaudit[slurm]"') from error
    shown = Shown(folder, only, progress)
    workers = min(workers, shown.left)
    shown.update()
    if not workers:
        return
    executor = submitit.AutoExecutor(folder=folder.path.absolute() / JOBS)
    on_gpu = folder.manifest.settings["device"].startswith("cuda")
    defaults = {
        "name": "riskaudit",
        "timeout_min": TIMEOUT_MINUTES,
        "cpus_per_task": folder.manifest.threads + 1,
        **({"gpus_per_node": 1} if on_gpu else {}),
    }
    try:
        executor.update_parameters(**{**defaults, **_numbers(parameters or {})})
    except (TypeError, NameError, AssertionError, ValueError) as error:
        raise SettingsError(f"expected `job` as submitit's parameters, found others: {clean(error, 200)}") from error
    try:
        jobs = executor.map_array(Job(), [str(folder.path.absolute())] * workers, [only] * workers)
    except Exception as error:  # sbatch fails in many ways
        raise EngineError(
            f"can't submit the jobs ({clean(error, 300)}); check the parameters given by `job`"
        ) from error
    try:
        while not all(job.done() for job in jobs):
            shown.update()
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        if executor.cluster == "local":
            for job in jobs:
                job.cancel(check=False)
        raise
    shown.update()
    _account_for(jobs, shown)


def _account_for(jobs: list[Any], shown: Shown) -> None:
    """Raise what jobs say, or that they ended before all was finished."""
    errors = [job.exception() for job in jobs]
    for job, error in zip(jobs, errors, strict=True):
        refused = None if error is not None else job.result()
        if refused is not None:
            raise EngineError(refused)
    failed = [error for error in errors if error is not None]
    if failed and shown.left:
        last_line = str(failed[0]).strip().splitlines()[-1]
        raise EngineError(
            f"{len(failed)} of {len(jobs)} jobs failed ({clean(last_line, 200)}) and {shown.left} shards are left; the "
            f"logs are in the run's folder {JOBS}; riskaudit run work goes on"
        )


def _numbers(parameters: Mapping[str, str]) -> dict[str, str | int]:
    """Whole numbers as such."""
    return {name: int(value) if value.isdecimal() else value for name, value in parameters.items()}
