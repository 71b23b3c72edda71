"""``riskaudit study NAME``: one question about a model, answered by proxies first and by attacks where asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic.dataclasses import dataclass

from riskaudit.audit.settings import AuditSettings
from riskaudit.cli.console import progress
from riskaudit.cli.invocation import recorded_command
from riskaudit.cli.models import ReportOptions, StudyOptions, SubjectOptions
from riskaudit.cli.options import command
from riskaudit.cli.scan import Delivery
from riskaudit.cli.verify import EXIT_INTERRUPTED, check_resumed, trials_beside
from riskaudit.errors import ArchitectureError, CheckpointError, SettingsError
from riskaudit.settings import CHECKED, INPUTS, Settings, option
from riskaudit.studies.settings import DirectionSettings, InitializationSettings
from riskaudit.studies.verify.record import VerifyStudy

if TYPE_CHECKING:
    from riskaudit.inputs import Checkpoint, Samples
    from riskaudit.results import AuditResult
    from riskaudit.studies.base import StudyRun

study = typer.Typer(
    help="Ask one question of a model: who is exposed, which directions protect, how it is best initialised, how "
    "training changes the risk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Runner = Callable[["Checkpoint", "Samples", AuditSettings, "StudyRun"], "AuditResult"]
Loader = Callable[[], "tuple[Checkpoint, Samples]"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GroupOptions(Settings):
    """Groups besides classes."""

    group_by: Annotated[
        Path | None,
        option(
            "CSV with the columns id,group: groups to compare besides classes. Ids as an audit prints them, or "
            "the names that they were hashed from.",
            INPUTS,
            file=True,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SeriesOptions(Settings):
    """Checkpoints of one run besides the audited one."""

    earlier: Annotated[
        tuple[str, ...],
        option(
            "More checkpoints of the same run; or one folder instead of all. Ordered by the last number of their "
            "names, else by the step or epoch stored in them, else as given.",
            argument="[CHECKPOINT]...",
            recorded=False,
        ),
    ] = ()


@study.command("directions")
@command
def directions(
    ctx: typer.Context, looked_at: DirectionSettings, subject: SubjectOptions, settings: AuditSettings,
    report: ReportOptions, options: StudyOptions,
) -> int:  # fmt: skip
    """Take every sample's Jacobian apart: spectrum, directions, layers, and noise in better shapes.

    Exit codes: as scan; 130 interrupted.
    """

    def run(model: Checkpoint, samples: Samples, settings: AuditSettings, study_run: StudyRun) -> AuditResult:
        from riskaudit.studies.directions.run import directions_study

        return directions_study(model, samples, settings, study_run, looked_at)

    return run_study(ctx, subject, settings, report, options, run)


@study.command("fairness")
@command
def fairness(
    ctx: typer.Context, grouping: GroupOptions, subject: SubjectOptions, settings: AuditSettings,
    report: ReportOptions, options: StudyOptions,
) -> int:  # fmt: skip
    """Compare how exposed samples, classes and groups are, and find those that the average hides.

    Exit codes: as scan; 130 interrupted.
    """
    earlier, file, groups = _earlier(options), grouping.group_by, None
    if file is not None:
        from riskaudit.studies.fairness.groups import read_groups

        groups = read_groups(file)

    def run(model: Checkpoint, samples: Samples, settings: AuditSettings, study_run: StudyRun) -> AuditResult:
        from riskaudit.studies.fairness.run import fairness_study, with_fairness

        source = None if file is None else file.name
        matched = None if groups is None else _matched(groups, str(source), subject, settings, samples)
        result = fairness_study(model, samples, settings, study_run, groups=matched, groups_name=source)
        attacked = None if earlier is None or not _same_release(result, earlier) else earlier.studies.get(VerifyStudy)
        if result.studies.get(VerifyStudy) is not None or attacked is None:
            return result
        studies = result.studies.with_study(attacked)
        return with_fairness(result.model_copy(update={"studies": studies}), matched, source)

    return run_study(ctx, subject, settings, report, options, run)


@study.command("initialization")
@command
def initialization(
    ctx: typer.Context, networks: InitializationSettings, subject: SubjectOptions, settings: AuditSettings,
    report: ReportOptions, options: StudyOptions,
) -> int:  # fmt: skip
    """Compare what the checkpoint's architecture leaks with other first weights, and with the checkpoint's own.

    Exit codes: as scan; 130 interrupted.
    """

    def run(model: Checkpoint, samples: Samples, settings: AuditSettings, study_run: StudyRun) -> AuditResult:
        from riskaudit.studies import initialization_study

        return initialization_study(model, samples, settings, study_run, seeds=networks.seeds)

    return run_study(ctx, subject, settings, report, options, run)


@study.command("training")
@command
def training(
    ctx: typer.Context, series: SeriesOptions, subject: SubjectOptions, settings: AuditSettings,
    report: ReportOptions, options: StudyOptions,
) -> int:  # fmt: skip
    """Compare what several checkpoints of one training run leak: on average, and of the most exposed sample.

    Exit codes: as scan; 130 interrupted. A checkpoint that can't be audited is a row with its reason.
    """
    paths = [*series.earlier, subject.checkpoint]

    def run(_: Checkpoint, samples: Samples, settings: AuditSettings, study_run: StudyRun) -> AuditResult:
        from riskaudit.inputs import load_checkpoint
        from riskaudit.studies import training_study

        load = partial(load_checkpoint, arch=subject.arch, mean=subject.mean, std=subject.std)
        return training_study(paths, samples, settings, study_run, load=load)

    return run_study(ctx, subject, settings, report, options, run, partial(_last_readable, subject, settings, paths))


def run_study(
    ctx: typer.Context, subject: SubjectOptions, settings: AuditSettings, report: ReportOptions,
    options: StudyOptions, runner: Runner, load: Loader | None = None,
) -> int:  # fmt: skip
    """Load, run, merge with the studies of an earlier audit, and deliver; what every study's command does.

    ``load`` replaces the subject's own, where there are several checkpoints.

    Exit codes: as scan; 130 interrupted, when finished trials are kept for --resume.
    """
    check_resumed(options.resume, report.out)
    delivery = Delivery(ctx, subject, settings, report)
    earlier = _earlier(options)

    # Everything above is checked before torch is loaded.
    from riskaudit.studies.base import StudyRun

    model, samples = subject.load(settings.loss) if load is None else load()
    log = trials_beside(delivery.folder)
    try:
        with progress(subject.quiet, "finished", "steps of the study") as update:
            study_run = StudyRun(
                attacks=options.attacks,
                attack_steps=options.attack_steps,
                log=log,
                resume=options.resume,
                progress=update,
                command=recorded_command(ctx),
                show_samples=report.show_samples,
            )
            result = runner(model, samples, delivery.settings, study_run)
    except KeyboardInterrupt:
        if log.exists():
            typer.echo(f"interrupted: finished trials are kept; --out {delivery.folder} --resume goes on", err=True)
        return EXIT_INTERRUPTED
    if earlier is not None:
        result = merged(result, earlier, str(options.add_to and options.add_to.name))
    outcome = delivery.deliver(result)
    log.unlink(missing_ok=True)
    return outcome


def merged(result: AuditResult, earlier: AuditResult, name: str) -> AuditResult:
    """A result with the studies of an earlier audit of the same model, data and release; a study made anew wins.

    Raises:
        SettingsError: the earlier audit is of another model, other data or another release.
    """
    for subject, value, other in (
        ("checkpoint", result.checkpoint.sha256, earlier.checkpoint.sha256),
        ("data", result.data.sha256, earlier.data.sha256),
        ("number of samples", result.data.num_samples, earlier.data.num_samples),
        ("release", result.release.spec, earlier.release.spec),
    ):
        if value != other:
            raise SettingsError(f"--add-to expects an audit of the same {subject}; {name} is of another")
    return result.model_copy(update={"studies": result.studies.over(earlier.studies)})


def _earlier(options: StudyOptions) -> AuditResult | None:
    if options.add_to is None:
        return None
    from riskaudit.results import AuditResult

    return AuditResult.load(options.add_to)


def _matched(
    groups: dict[str, str], file: str, subject: SubjectOptions, settings: AuditSettings, samples: Samples
) -> dict[str, str]:
    """Groups by the ids of the audit; ids that were hashed are looked up by their names."""
    from riskaudit.studies.fairness.groups import groups_of_ids

    names = None
    if not subject.plain_ids and set(groups) - set(samples.ids):
        names = replace(subject, plain_ids=True).load(settings.loss)[1].ids
    return groups_of_ids(groups, samples.ids, names, file)


def _same_release(result: AuditResult, earlier: AuditResult) -> bool:
    """Whether attacks on an earlier audit are attacks on this one."""
    identities = [
        (audit.checkpoint.sha256, audit.data.sha256, audit.release, [row.id for row in audit.samples])
        for audit in (result, earlier)
    ]
    return identities[0] == identities[1]


def _last_readable(subject: SubjectOptions, settings: AuditSettings, paths: list[str]) -> tuple[Checkpoint, Samples]:
    """The last checkpoint that can be read, which says how samples are to be read, and the samples."""
    from riskaudit.studies.training.series import checkpoint_files, order_of

    snapshots, _ = order_of(checkpoint_files(paths))
    reason: Exception | None = None
    for snapshot in reversed(snapshots):
        try:
            return replace(subject, checkpoint=str(snapshot.path)).load(settings.loss)
        except (CheckpointError, ArchitectureError) as error:
            reason = reason or error
    assert reason is not None
    if len(snapshots) == 1:
        raise reason
    raise CheckpointError(f"none of the {len(snapshots)} checkpoints can be read (the last: {reason})") from reason
