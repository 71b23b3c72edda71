"""``riskaudit study NAME``: one question about a model, answered by proxies first and by attacks where asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from riskaudit.audit.settings import AuditSettings
from riskaudit.cli.console import progress
from riskaudit.cli.invocation import recorded_command
from riskaudit.cli.models import PredictingStudyOptions, ReportOptions, StudyOptions, SubjectOptions
from riskaudit.cli.options import command
from riskaudit.cli.scan import Delivery, audit_in
from riskaudit.cli.verify import EXIT_INTERRUPTED, check_resumed, goes_on, trials_beside, without_empty
from riskaudit.errors import ArchitectureError, CheckpointError, SettingsError
from riskaudit.files import find_model, find_samples
from riskaudit.settings import ATTACKS, CHECKED, INPUTS, SOLVERS, Count, Positive, Settings, option
from riskaudit.studies.settings import DefenseSettings, DirectionSettings, InitializationSettings

if TYPE_CHECKING:
    from riskaudit.inputs import Checkpoint, Samples
    from riskaudit.results import AuditResult
    from riskaudit.studies.base import StudyRun

study = typer.Typer(
    help="Ask one question of a model: who is exposed, which directions protect, how it is best initialised, how "
    "training changes the risk, which defence protects most at what cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# Options of the studies that always attack.
ATTACKING: tuple[type[Settings], ...] = (DefenseSettings,)


@dataclass(frozen=True)
class Job:
    """What a study works on."""

    subject: SubjectOptions
    model: Checkpoint
    samples: Samples
    settings: AuditSettings
    run: StudyRun
    earlier: AuditResult | None


@checked_dataclass(frozen=True, kw_only=True, config=CHECKED)
class GroupOptions(Settings):
    """Groups besides classes."""

    group_by: Path | None = option(
        None,
        "CSV with the columns id,group: groups to compare besides classes. Ids as an audit prints them, or the "
        "names that they were hashed from.",
        INPUTS,
        file=True,
        check=find_samples,
    )


@checked_dataclass(frozen=True, kw_only=True, config=CHECKED)
class SeriesOptions(Settings):
    """Checkpoints of one run besides the audited one, or a run of the study's own."""

    earlier: tuple[str, ...] = option(
        (),
        "More checkpoints of the same run; or one folder instead of all. Ordered by the last number of their "
        "names, else by the step or epoch stored in them, else as given.",
        argument="[CHECKPOINT]...",
        recorded=False,
    )
    train: str | None = option(
        None,
        "Samples to train the one CHECKPOINT on, by what leaves, instead of more checkpoints; read as --data is.",
        INPUTS,
        file=True,
        check=find_samples,
    )
    train_limit: Count | None = option(None, "Train on at most this many samples.", INPUTS)
    points: tuple[int, ...] = option(
        (),
        "With --train: steps after which the network is audited, separated by commas (default: "
        "0,1,5,10,20,50,100,500,1000).",
        SOLVERS,
        commas=True,
    )
    learning_rate: Positive = option(0.1, "With --train: rate of plain SGD.", SOLVERS)
    training_batch: Count = option(32, "With --train: samples of one step.", SOLVERS)
    attack_names: Annotated[tuple[str, ...], Field(min_length=1)] = option(
        ("gauss-newton", "inverting-gradients"),
        "With --attacks: attack to run (see riskaudit list); repeatable (default: gauss-newton, inverting-gradients).",
        ATTACKS,
        flags=("--attack",),
    )

    def check(self, checkpoint: str) -> None:
        """Refuse what doesn't go together, and a single checkpoint that isn't there; one of several is a row.

        Raises:
            SettingsError: why not.
            CheckpointError: it is missing.
        """
        if self.train is None and (self.points or self.train_limit is not None):
            name = "points" if self.points else "train_limit"
            raise SettingsError(f"`{name}` belongs to a training of the study's own; give `train` as well")
        if self.train is not None and self.earlier:
            raise SettingsError(f"expected one checkpoint to begin with for `train`, found {1 + len(self.earlier)}")
        if not self.earlier:
            find_model(checkpoint)

    def last_readable(self, subject: SubjectOptions, loss: str) -> tuple[Checkpoint, Samples]:
        """The last checkpoint that can be read, which says how samples are to be read, and the samples."""
        from riskaudit.studies.training.run import last_usable
        from riskaudit.studies.training.snapshots import checkpoint_files, order_of

        snapshots, _ = order_of(checkpoint_files([*self.earlier, subject.checkpoint]))

        def read(path: Path) -> tuple[Checkpoint, Samples]:
            return replace(subject, checkpoint=str(path)).load(loss)

        return last_usable(snapshots, read, (CheckpointError, ArchitectureError), "read")[1]


def study_command(model: type[Settings], function: Callable[[Job, Any], AuditResult]) -> None:
    """Register a study: ``function`` of a job and of the study's own options, which are those of ``model``.

    Attacks run where they are asked for, and always in a study whose finding rests on them (`ATTACKING`).
    The command loads, runs, merges the result with the studies of an earlier audit, and delivers.
    """

    def run(
        ctx: typer.Context, options: Settings, subject: SubjectOptions, settings: AuditSettings, report: ReportOptions,
        shared: StudyOptions,
    ) -> int:  # fmt: skip
        # A budget counts reading the inputs too.
        started = time.monotonic()
        check_resumed(shared.resume, report.out)
        delivery = Delivery.of(ctx, subject, settings, report)
        earlier = audit_in(shared.add_to)
        load: Callable[[SubjectOptions, str], tuple[Checkpoint, Samples]] = SubjectOptions.load
        if isinstance(options, SeriesOptions):
            options.check(subject.checkpoint)
            load = options.last_readable

        # Everything above is checked before torch is loaded.
        from riskaudit.studies.base import StudyRun

        checkpoint, samples = load(subject, settings.loss)
        log = trials_beside(delivery.folder)
        try:
            with without_empty(log), progress(subject.quiet, "finished", "steps of the study") as update:
                study_run = StudyRun(
                    attacks=shared.attacks if isinstance(shared, PredictingStudyOptions) else True,
                    attack_steps=shared.attack_steps,
                    log=log,
                    resume=shared.resume,
                    progress=update,
                    command=recorded_command(ctx),
                    show_samples=report.show_samples,
                    workers=subject.workers,
                    started=started,
                )
                result = function(Job(subject, checkpoint, samples, delivery.settings, study_run, earlier), options)
        except KeyboardInterrupt:
            if log.exists():
                typer.echo(f"interrupted: finished trials are kept; {goes_on(delivery.folder, log)}", err=True)
            return EXIT_INTERRUPTED
        if earlier is not None and shared.add_to is not None:
            result = merged(result, earlier, shared.add_to.name)
        outcome = delivery.deliver(result)
        log.unlink(missing_ok=True)
        return outcome

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ |= {"options": model, "shared": StudyOptions if model in ATTACKING else PredictingStudyOptions}
    study.command(function.__name__)(command(run, unchecked={"checkpoint"} if model is SeriesOptions else ()))


def directions(job: Job, options: DirectionSettings) -> AuditResult:
    """Take every sample's Jacobian apart: spectrum, directions, layers, and noise in better shapes.

    Exit codes: as scan; 130 interrupted.
    """
    from riskaudit.studies.directions.run import directions_study

    return directions_study(job.model, job.samples, job.settings, job.run, options)


def fairness(job: Job, options: GroupOptions) -> AuditResult:
    """Compare how exposed samples, classes and groups are, and find those that the average hides.

    Exit codes: as scan; 130 interrupted.
    """
    from riskaudit.studies.fairness.run import fairness_study, with_fairness
    from riskaudit.studies.verify.record import VerifyStudy

    file = options.group_by
    groups, source = (None, None) if file is None else (_groups(file, job), file.name)
    result = fairness_study(job.model, job.samples, job.settings, job.run, groups=groups, groups_name=source)
    earlier = job.earlier
    attacked = None if earlier is None or not _same_release(result, earlier) else earlier.studies.get(VerifyStudy)
    if result.studies.get(VerifyStudy) is not None or attacked is None:
        return result
    studies = result.studies.with_study(attacked)
    return with_fairness(result.model_copy(update={"studies": studies}), groups, source)


def initialization(job: Job, options: InitializationSettings) -> AuditResult:
    """Compare what the checkpoint's architecture leaks with other first weights, and with the checkpoint's options.

    Exit codes: as scan; 130 interrupted.
    """
    from riskaudit.studies.initialization.run import initialization_study

    return initialization_study(job.model, job.samples, job.settings, job.run, seeds=options.seeds)


def training(job: Job, options: SeriesOptions) -> AuditResult:
    """Compare what checkpoints of a training run, given or made here, leak: on average, and of the most exposed sample.

    Exit codes: as scan; 130 interrupted. A checkpoint that can't be audited is a row with its reason.
    """
    from riskaudit.inputs import load_checkpoint
    from riskaudit.studies.training.own_run import STEPS, own_training_study
    from riskaudit.studies.training.run import training_study

    subject, names = job.subject, options.attack_names
    train = _read(job, options.train, options.train_limit)
    if train is not None:
        return own_training_study(
            job.model,
            job.samples,
            train,
            job.settings,
            job.run,
            steps=options.points or STEPS,
            batch_size=options.training_batch,
            rate=options.learning_rate,
            attacks=names,
        )
    load = partial(load_checkpoint, arch=subject.arch, weights=subject.weights, mean=subject.mean, std=subject.std)
    files = [*options.earlier, subject.checkpoint]
    return training_study(files, job.samples, job.settings, job.run, load=load, attacks=names)


def defenses(job: Job, options: DefenseSettings) -> AuditResult:
    """Train with each of several defences, attack on the way, and lay what each protects beside what it costs.

    Exit codes: as scan; 130 interrupted. A training that diverges is a row with its status. Attacks always run.
    """
    from riskaudit.studies.defenses.run import TrainingData, defenses_study

    train = _read(job, options.train, options.train_limit)
    assert train is not None
    data = TrainingData(train, _read(job, options.test, None))
    return defenses_study(job.model, job.samples, data, job.settings, job.run, options=options)


def _read(job: Job, data: str | None, limit: int | None) -> Samples | None:
    """Other samples, as those that are audited are read."""
    return None if data is None else replace(job.subject, data=data, limit=limit).load(job.settings.loss)[1]


def merged(result: AuditResult, earlier: AuditResult, name: str) -> AuditResult:
    """A result with the studies of an earlier audit of the same model, data and release; a study made anew wins.

    Raises:
        SettingsError: the earlier audit is of another model, other data or another release.
    """
    for compared, value, other in (
        ("checkpoint", result.checkpoint.sha256, earlier.checkpoint.sha256),
        ("data", result.data.sha256, earlier.data.sha256),
        ("number of samples", result.data.num_samples, earlier.data.num_samples),
        ("release", result.release.spec, earlier.release.spec),
    ):
        if value != other:
            raise SettingsError(f"--add-to expects an audit of the same {compared}; {name} is of another")
    return result.model_copy(update={"studies": result.studies.over(earlier.studies)})


def _groups(file: Path, job: Job) -> dict[str, str]:
    """Groups by the ids of the audit; ids that were hashed are looked up by their names."""
    from riskaudit.studies.fairness.run import groups_of_ids, read_groups

    groups, names = read_groups(file), None
    if not job.subject.plain_ids and set(groups) - set(job.samples.ids):
        names = replace(job.subject, plain_ids=True).load(job.settings.loss)[1].ids
    return groups_of_ids(groups, job.samples.ids, names, file.name)


def _same_release(result: AuditResult, earlier: AuditResult) -> bool:
    identities = [
        (audit.checkpoint.sha256, audit.data.sha256, audit.release, [row.id for row in audit.samples])
        for audit in (result, earlier)
    ]
    return identities[0] == identities[1]


for model, function in (
    (DirectionSettings, directions),
    (GroupOptions, fairness),
    (InitializationSettings, initialization),
    (SeriesOptions, training),
    (DefenseSettings, defenses),
):
    study_command(model, function)
