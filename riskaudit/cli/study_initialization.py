"""``riskaudit study initialization``: which first weights leak least."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from riskaudit.cli import options as opt
from riskaudit.cli.groups import ReportOptions, StudyOptions, SubjectOptions, takes_options
from riskaudit.cli.study import run_study, study
from riskaudit.errors import SettingsError
from riskaudit.results import AuditResult

if TYPE_CHECKING:
    from riskaudit.audit import AuditSettings
    from riskaudit.inputs import Checkpoint, Samples
    from riskaudit.studies.running import StudyRun


@study.command("initialization")
@takes_options(SubjectOptions, ReportOptions, StudyOptions)
def initialization(
    ctx: typer.Context,
    subject: SubjectOptions,
    report: ReportOptions,
    options: StudyOptions,
    *,
    seeds: Annotated[
        int, typer.Option("--seeds", help="Fresh networks per initialization.", rich_help_panel=opt.SOLVERS)
    ] = 3,
) -> int:
    """Compare what the checkpoint's architecture leaks with other first weights, and with the checkpoint's own.

    Exit codes: as scan; 130 interrupted.
    """
    if seeds < 1:
        raise SettingsError(f"expected --seeds of at least 1, found {seeds}")

    def run(model: Checkpoint, samples: Samples, settings: AuditSettings, how: StudyRun) -> AuditResult:
        from riskaudit.studies import initialization_study

        return initialization_study(model, samples, settings, how, seeds=seeds)

    return run_study(ctx, subject, report, options, run)
