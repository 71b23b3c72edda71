"""``riskaudit scan``: the audit of one checkpoint on a sample of data."""

from __future__ import annotations

import typer

from riskaudit.cli import options as opt
from riskaudit.cli.console import print_summary, progress
from riskaudit.cli.groups import ReportOptions, SubjectOptions, takes_options
from riskaudit.cli.limits import Limits
from riskaudit.cli.recorded import recorded_command
from riskaudit.cli.sources import inputs_of
from riskaudit.files import check_output_folder, write_folder
from riskaudit.report import render
from riskaudit.results import AuditResult

EXIT_EXCEEDED = 1


@takes_options(SubjectOptions, ReportOptions)
def scan(ctx: typer.Context, subject: SubjectOptions, report: ReportOptions) -> int:
    """Audit what the gradients of a checkpoint on some samples give away.

    Exit codes: 0 audited, within policy or no policy given; 1 a policy limit was exceeded; 2 could not audit.
    """
    desk = Desk(ctx, subject, report)

    # Everything above is checked before torch is loaded.
    from riskaudit.audit import audit

    settings = subject.settings(**report.settings(desk.limits.policy))
    model, samples = subject.load()
    with progress(subject.quiet) as update:
        result = audit(
            model, samples, settings, show_samples=report.show_samples,
            command=recorded_command(ctx, subject.checkpoint, subject.data), progress=update,
        )  # fmt: skip
    return desk.deliver(result)


class Desk:
    """Where a result goes and what it is held against; made before any work is done.

    Args:
        ctx: of the command line, which names what is read.
        subject: what is audited.
        report: of which the places and limits count.

    Raises:
        RiskauditError: a place that can't be used, or limits that can't be read.
    """

    def __init__(self, ctx: typer.Context, subject: SubjectOptions, report: ReportOptions) -> None:
        self._quiet = subject.quiet
        # Images of people, and names that may be theirs, are for the owner of the files alone.
        self._private = report.show_samples or subject.plain_ids
        self.folder = report.folder(subject.checkpoint)
        check_output_folder(self.folder, inputs_of(ctx))
        self._earlier = None if report.baseline is None else AuditResult.load(report.baseline)
        self.limits = Limits(report.max_revealed, report.min_rmse, report.policy, subject.config)
        self._formats = opt.formats_of(report.format)

    def deliver(self, result: AuditResult) -> int:
        """Decide, render, write and sum up; returns the exit code."""
        result = result.model_copy(update={"policy": self.limits.decide(result)})
        files = render(result, self._formats, baseline=self._earlier)
        write_folder(self.folder, files, private=self._private)
        if not self._quiet:
            print_summary(result, [self.folder / name for name in files])
        return EXIT_EXCEEDED if result.policy is not None and result.policy.decision == "block" else 0
