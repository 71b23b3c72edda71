"""`Run`: a run from Python. Loads no torch until inputs are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from riskaudit.audit.settings import AuditSettings
from riskaudit.audit.subject import SourceOptions
from riskaudit.errors import SettingsError
from riskaudit.results import AuditResult
from riskaudit.runs.folder import RunFolder
from riskaudit.runs.manifest import RunManifest
from riskaudit.runs.status import RunStatus, refuse_incomplete, status_of

if TYPE_CHECKING:
    from riskaudit.engine import Progress

SHARD = 256


@final
class Run:
    """One audit as shards: created once, worked on by anyone who has its folder and its inputs, merged in the end.

        run = riskaudit.Run.create("runs/hospital", ["lenet.pt"], "mnist.npz", release="clip:1.0,gaussian:0.01")
        run.execute(workers=4)
        (result,) = run.merge()

    Args:
        folder: that `create` made.

    Raises:
        RunError: it isn't one.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = RunFolder.open(folder)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        checkpoints: Sequence[str | Path],
        data: str | Path,
        settings: AuditSettings | None = None,
        *,
        shard: int = SHARD,
        threads: int = 1,
        heartbeat: float = 5.0,
        show_samples: bool = False,
        commands: Sequence[str | None] | None = None,
        **options: Any,
    ) -> Run:
        """Read the inputs, decide how they are audited, and write that down.

        Args:
            folder: a new or empty one, which all workers reach.
            checkpoints: files, at places that all workers reach.
            data: likewise; or ``file.py:function``.
            settings: of every audit.
            shard: samples that are finished together, at most; an upload stays whole.
            threads: of every worker; results depend on it by rounding.
            heartbeat: seconds between a worker's signs of life; a worker without any for 12 times as long is given up.
            show_samples: put private inputs into the results; the folder is for its owner alone then.
            commands: that reproduce the audits, for the record.
            **options: fields of `AuditSettings`, and how data and models are read (``limit``, ``arch``...).

        Raises:
            RiskauditError: a folder that is taken, or inputs and options that don't fit.
        """
        from riskaudit.runs.creating import check_folder, make_manifest, write_run

        own = {field.name for field in fields(AuditSettings)}
        source = SourceOptions(data=str(data), **{name: each for name, each in options.items() if name not in own})
        settings = replace(settings or AuditSettings(), **{name: each for name, each in options.items() if name in own})
        check_folder(Path(folder), [Path(each) for each in (*checkpoints, data) if Path(each).exists()])
        for name, value in (("shard", shard), ("threads", threads)):
            if value < 1:
                raise SettingsError(f"expected `{name}` of at least 1, found {value}")
        manifest = make_manifest(
            checkpoints,
            source,
            settings,
            shard=shard,
            threads=threads,
            heartbeat=heartbeat,
            show_samples=show_samples,
            commands=commands,
        )
        write_run(Path(folder), manifest)
        return cls(folder)

    @property
    def manifest(self) -> RunManifest:
        """What is audited and how."""
        return self._folder.manifest

    def execute(
        self,
        engine: Literal["local", "ray", "slurm"] = "local",
        *,
        workers: int | None = None,
        shard: int | None = None,
        address: str | None = None,
        job: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Work until all shards are finished, those that others work on included.

        Args:
            engine: where workers come from: "local" processes, tasks of a "ray" cluster, or jobs of a "slurm" array.
            workers: how many (default: 1; with Ray as many as the cluster has room for).
            shard: the number of the one shard to work on.
            address: of the Ray cluster (default: that of ``RAY_ADDRESS``, else one is started here).
            job: parameters of the SLURM jobs as submitit names them.
            progress: called as ``progress(done, total)``, in samples.

        Raises:
            RiskauditError: nothing can be done; the message says what to change.
        """
        if workers is not None and workers < 1:
            raise SettingsError(f"expected `workers` of at least 1, found {workers}")
        if engine != "ray" and address is not None:
            raise SettingsError("`address` belongs to `engine=ray`; leave one of them out")
        if engine != "slurm" and job:
            raise SettingsError("`job` belongs to `engine=slurm`; leave one of them out")
        if shard is not None:
            self._folder.unit(shard)
        if engine == "local":
            from riskaudit.runs.engines.processes import WorkerProcesses

            WorkerProcesses(self._folder, workers or 1, shard).work(progress)
        elif engine == "ray":
            from riskaudit.runs.engines.ray import work_by_ray

            work_by_ray(self._folder, shard, workers=workers, address=address, progress=progress)
        elif engine == "slurm":
            from riskaudit.runs.engines.slurm import work_by_slurm

            work_by_slurm(self._folder, shard, workers=workers or 1, parameters=job, progress=progress)
        else:
            raise SettingsError(f"expected `engine` to be one of local, ray, slurm, found {engine!r}")

    def status(self) -> RunStatus:
        """How far the run is."""
        return status_of(self._folder)

    def merge(self, *, partial: bool = False, settings: AuditSettings | None = None) -> list[AuditResult]:
        """One audit per checkpoint.

        Args:
            partial: merge what isn't complete too; samples of shards that aren't finished count as not assessed, and
                no policy allows such a result.
            settings: with the limits of a policy, by which noise is recommended, instead of the run's own limits.

        Raises:
            RunError: it isn't complete, or a shard isn't whole, or inputs or versions are others.
        """
        return list(self.merged(partial=partial, settings=settings))

    def merged(self, *, partial: bool = False, settings: AuditSettings | None = None) -> Iterator[AuditResult]:
        """The same one by one, as they are made."""
        from riskaudit.runs.merging import merge_checkpoint

        if not partial:
            refuse_incomplete(self.status())
        for number in range(len(self.manifest.checkpoints)):
            yield merge_checkpoint(self._folder, number, settings)
