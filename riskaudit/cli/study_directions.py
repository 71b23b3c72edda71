"""``riskaudit study directions``: which directions, layers and shapes of noise protect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from riskaudit.cli import options as opt
from riskaudit.cli.groups import ReportOptions, StudyOptions, SubjectOptions, takes_options
from riskaudit.cli.study import run_study, study
from riskaudit.results import AuditResult

if TYPE_CHECKING:
    from riskaudit.audit import AuditSettings
    from riskaudit.inputs import Checkpoint, Samples
    from riskaudit.studies.running import StudyRun


@study.command("directions")
@takes_options(SubjectOptions, ReportOptions, StudyOptions)
def directions(
    ctx: typer.Context,
    subject: SubjectOptions,
    report: ReportOptions,
    options: StudyOptions,
    *,
    norm: Annotated[
        float | None,
        typer.Option(
            "--norm",
            help="Norm of every perturbation (default: what the audit's noise has within the range of the Jacobian).",
            rich_help_panel=opt.RELEASE,
        ),
    ] = None,
    quantile: Annotated[
        list[float] | None,
        typer.Option(
            "--quantile",
            help="Place in the spectrum of a direction to perturb, 0 the smallest eigenvalue, 1 the largest; "
            "repeatable (default: 0, 0.1, 0.5, 0.9, 1).",
            rich_help_panel=opt.RELEASE,
        ),
    ] = None,
    prune_ratio: Annotated[
        float,
        typer.Option(
            "--prune-ratio", help="Share of entries pruned, for pruning's direction.", rich_help_panel=opt.RELEASE
        ),
    ] = 0.9,
    shaping: Annotated[
        bool,
        typer.Option(
            "--shaping/--no-shaping", help="Compare shapes of noise of equal power.", rich_help_panel=opt.RELEASE
        ),
    ] = True,
) -> int:
    """Take every sample's Jacobian apart: spectrum, directions, layers, and noise in better shapes.

    Exit codes: as scan; 130 interrupted.
    """

    def run(model: Checkpoint, samples: Samples, settings: AuditSettings, how: StudyRun) -> AuditResult:
        from riskaudit.studies.directions.run import DirectionSettings, directions_study

        shares = DirectionSettings.shares if quantile is None else tuple(quantile)
        looked_at = DirectionSettings(norm, shares, prune_ratio, shaping=shaping)
        return directions_study(model, samples, settings, how, looked_at)

    return run_study(ctx, subject, report, options, run)
