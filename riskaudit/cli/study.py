"""``riskaudit study NAME``: one question about a model, answered by proxies first and by attacks where asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from riskaudit.cli.console import progress
from riskaudit.cli.groups import ReportOptions, StudyOptions, SubjectOptions
from riskaudit.cli.recorded import recorded_command
from riskaudit.cli.scan import Desk
from riskaudit.cli.verify import EXIT_INTERRUPTED, trials_beside
from riskaudit.errors import SettingsError
from riskaudit.results import AuditResult

if TYPE_CHECKING:
    from riskaudit.audit import AuditSettings
    from riskaudit.inputs import Checkpoint, Samples
    from riskaudit.studies.running import StudyRun

study = typer.Typer(
    help="Ask one question of a model: who is exposed, which directions protect, how it is best initialised, how "
    "training changes the risk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Runner = Callable[["Checkpoint", "Samples", "AuditSettings", "StudyRun"], AuditResult]
Loader = Callable[[], "tuple[Checkpoint, Samples]"]


def run_study(
    ctx: typer.Context, subject: SubjectOptions, report: ReportOptions, options: StudyOptions, runner: Runner,
    load: Loader | None = None,
) -> int:  # fmt: skip
    """Load, run, merge with the studies of an earlier audit, and deliver; what every study's command does.

    ``load`` replaces the subject's own, where there are several checkpoints.

    Exit codes: as scan; 130 interrupted, when finished trials are kept for --resume.
    """
    if options.resume and report.out is None:
        raise SettingsError("--resume needs the --out of the run that was interrupted")
    desk = Desk(ctx, subject, report)
    earlier = None if options.add_to is None else AuditResult.load(options.add_to)

    # Everything above is checked before torch is loaded.
    from riskaudit.studies.running import StudyRun

    settings = subject.settings(**report.settings(desk.limits.policy))
    model, samples = (load or subject.load)()
    log = trials_beside(desk.folder)
    try:
        with progress(subject.quiet, "finished", "steps of the study") as update:
            run = StudyRun(
                attacks=options.attacks, attack_steps=options.attack_steps, log=log, resume=options.resume,
                progress=update, command=recorded_command(ctx, subject.checkpoint, subject.data),
                show_samples=report.show_samples,
            )  # fmt: skip
            result = runner(model, samples, settings, run)
    except KeyboardInterrupt:
        if log.exists():
            typer.echo(f"interrupted: finished trials are kept; --out {desk.folder} --resume goes on", err=True)
        return EXIT_INTERRUPTED
    outcome = desk.deliver(result if earlier is None else merged(result, earlier, Path(options.add_to or "")))
    log.unlink(missing_ok=True)
    return outcome


def merged(result: AuditResult, earlier: AuditResult, place: Path) -> AuditResult:
    """A result with the studies of an earlier audit of the same model, data and release; a study made anew wins.

    Raises:
        SettingsError: the earlier audit is of another model, other data or another release.
    """
    for what, one, other in (
        ("checkpoint", result.checkpoint.sha256, earlier.checkpoint.sha256),
        ("data", result.data.sha256, earlier.data.sha256),
        ("number of samples", result.data.num_samples, earlier.data.num_samples),
        ("release", result.release.spec, earlier.release.spec),
    ):
        if one != other:
            raise SettingsError(f"--add-to expects an audit of the same {what}; {place.name} is of another")
    return result.model_copy(update={"studies": result.studies.over(earlier.studies)})
