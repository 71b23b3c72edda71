"""``riskaudit scan``: the audit of one checkpoint on a sample of data."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from riskaudit.audit.settings import AuditSettings
from riskaudit.cli.app import load_commands
from riskaudit.cli.console import progress, working
from riskaudit.cli.invocation import inputs_of, recorded_command
from riskaudit.cli.models import ReportOptions, SubjectOptions
from riskaudit.cli.options import command, in_options
from riskaudit.errors import SettingsError
from riskaudit.files import check_output_folder, write_folder

if TYPE_CHECKING:
    from riskaudit.policy import Policy
    from riskaudit.results import AuditResult

EXIT_EXCEEDED = 1


@command
def scan(ctx: typer.Context, subject: SubjectOptions, settings: AuditSettings, report: ReportOptions) -> int:
    """Audit what the gradients of a checkpoint on some samples give away.

    Exit codes: 0 audited, within policy or no policy given; 1 a policy limit was exceeded; 2 could not audit.
    """
    # A budget counts reading the inputs too.
    started = time.monotonic()
    delivery = Delivery.of(ctx, subject, settings, report)

    # Everything above is checked before torch is loaded.
    from riskaudit.audit.audit import audit

    model, samples = subject.load(settings.loss)
    advice = "" if settings.budget else "--budget SECONDS ends a scan in time, with the intervals that it has then"
    with progress(subject.quiet, advice=advice) as update:
        result = audit(
            model,
            samples,
            delivery.settings,
            show_samples=report.show_samples,
            command=recorded_command(ctx),
            progress=update,
            workers=subject.workers,
            started=started,
        )
    return delivery.deliver(result)


class Delivery:
    """Where a result goes and what it is held against; made before any work is done.

    Args:
        folder: for the result.
        inputs: files and folders that the run reads.
        settings: of the audit.
        report: what is rendered, and the policy.
        config: the file that options were read from, which may hold a policy.
        private: files are for their owner alone.
        quiet: print nothing.

    Raises:
        RiskauditError: a place that can't be used, or limits that can't be read.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Iterable[Path],
        settings: AuditSettings,
        report: ReportOptions,
        config: Path | None,
        *,
        private: bool,
        quiet: bool,
    ) -> None:
        self.folder, self._private, self._quiet, self._formats = folder, private, quiet, report.format
        check_output_folder(folder, inputs)
        self._earlier = audit_in(report.baseline)
        self._policy, self._source = limits_of(settings, report.policy, config)
        self.settings = replace(settings, max_revealed=self._policy.max_revealed, min_rmse=self._policy.min_rmse)

    @classmethod
    def of(
        cls, ctx: typer.Context, subject: SubjectOptions, settings: AuditSettings, report: ReportOptions
    ) -> Delivery:
        """Of a command that audits one checkpoint."""
        return cls(
            report.folder(subject.checkpoint),
            inputs_of(ctx),
            settings,
            report,
            subject.config,
            # Images of people, and names that may be theirs, are for the owner of the files alone.
            private=report.show_samples or subject.plain_ids,
            quiet=subject.quiet,
        )

    def deliver(self, result: AuditResult, *, in_table: bool = False) -> int:
        """Decide, render, write and sum up; returns the exit code.

        Args:
            result: of the audit.
            in_table: put the samples into a table beside audit.json.
        """
        from riskaudit.cli.summary import print_summary
        from riskaudit.report import render
        from riskaudit.report.large import noted, render_table

        result = noted(result) if in_table else result
        outcome = self._policy.decide(result, self._source) if self._policy.refuses else None
        result = result.model_copy(update={"policy": outcome})
        load_commands()
        formats = [name for name in self._formats if not (in_table and name == "json")]
        with working(self._quiet, "writing the report"):
            files = render(result, formats, baseline=self._earlier, spelling=in_options)
            if len(formats) < len(self._formats):
                files |= render_table(result)
        write_folder(self.folder, files, private=self._private)
        if not self._quiet:
            print_summary(result, [self.folder / name for name in files])
        return EXIT_EXCEEDED if outcome is not None and outcome.decision == "block" else 0


def limits_of(settings: AuditSettings, policy: Path | None, config: Path | None) -> tuple[Policy, str]:
    """The policy's limits and where they came from.

    Limit by limit, an option on the command line wins over ``policy``, and that over the policy table of the
    configuration file.

    Raises:
        SettingsError: a file that can't be read or holds no limits, or a limit that is none.
    """
    from riskaudit.policy import Policy, policy_table

    limits: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for file in (config, policy):
        table = policy_table(file, required=file is policy) if file is not None else None
        if file is not None and table:
            limits |= table
            sources |= dict.fromkeys(table, file.name)
    for name, value in (("max_revealed", settings.max_revealed), ("min_rmse", settings.min_rmse)):
        if value is not None:
            limits[name] = value
            sources[name] = f"--{name.replace('_', '-')}"
    result = Policy.from_mapping(limits)
    if policy is not None and not result.refuses:
        raise SettingsError(f"expected policy limits in {policy}, found none")
    return result, ", ".join(dict.fromkeys(sources.values()))


def audit_in(path: Path | None) -> AuditResult | None:
    """An earlier audit, where there is one."""
    if path is None:
        return None
    from riskaudit.results import AuditResult

    return AuditResult.load(path)
