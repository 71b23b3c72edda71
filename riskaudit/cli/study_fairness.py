"""``riskaudit study fairness``: who is exposed, by sample, class and group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
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


@study.command("fairness")
@takes_options(SubjectOptions, ReportOptions, StudyOptions)
def fairness(
    ctx: typer.Context,
    subject: SubjectOptions,
    report: ReportOptions,
    options: StudyOptions,
    *,
    group_by: Annotated[
        Path | None,
        typer.Option(
            "--group-by",
            help="CSV with the columns id,group: groups to compare besides classes. Ids as an audit prints them, or "
            "the names that they were hashed from.",
            rich_help_panel=opt.INPUTS,
        ),
    ] = None,
) -> int:
    """Compare how exposed samples, classes and groups are, and find those that the average hides.

    Exit codes: as scan; 130 interrupted.
    """
    earlier = None if options.add_to is None else AuditResult.load(options.add_to)
    groups: dict[str, str] | None = None
    if group_by is not None:
        from riskaudit.inputs.groups import read_groups

        groups = read_groups(group_by)

    def run(model: Checkpoint, samples: Samples, settings: AuditSettings, how: StudyRun) -> AuditResult:
        from riskaudit.studies.fairness.run import fairness_study, with_fairness

        matched = groups
        if groups is not None and group_by is not None:
            matched = _matched(groups, group_by, subject, samples)
        source = None if group_by is None else group_by.name
        result = fairness_study(model, samples, settings, how, groups=matched, groups_name=source)
        attacked = None if earlier is None or not _same_release(result, earlier) else earlier.studies.verify
        if result.studies.verify is not None or attacked is None:
            return result
        studies = result.studies.with_study(attacked)
        return with_fairness(result.model_copy(update={"studies": studies}), matched, source)

    return run_study(ctx, subject, report, options, run)


def _matched(groups: dict[str, str], place: Path, subject: SubjectOptions, samples: Samples) -> dict[str, str]:
    """Groups by the ids of the audit; ids that were hashed are looked up by their names."""
    from riskaudit.inputs.groups import groups_of_ids

    names = None
    if not subject.plain_ids and set(groups) - set(samples.ids):
        names = replace(subject, plain_ids=True).load()[1].ids
    return groups_of_ids(groups, samples.ids, names, place.name)


def _same_release(result: AuditResult, earlier: AuditResult) -> bool:
    """Whether attacks on an earlier audit are attacks on this one."""
    same = (result.checkpoint.sha256, result.data.sha256, result.release, [row.id for row in result.samples])
    other = (earlier.checkpoint.sha256, earlier.data.sha256, earlier.release, [row.id for row in earlier.samples])
    return same == other
