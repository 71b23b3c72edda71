"""``riskaudit study training``: the leak over the checkpoints of one run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from riskaudit.cli import options as opt
from riskaudit.cli.groups import ReportOptions, StudyOptions, SubjectOptions, takes_options
from riskaudit.cli.study import run_study, study
from riskaudit.errors import ArchitectureError, CheckpointError
from riskaudit.results import AuditResult

if TYPE_CHECKING:
    from riskaudit.audit import AuditSettings
    from riskaudit.inputs import Checkpoint, Samples
    from riskaudit.studies.running import StudyRun


@study.command("training")
@takes_options(SubjectOptions, ReportOptions, StudyOptions)
def training(
    ctx: typer.Context,
    subject: SubjectOptions,
    report: ReportOptions,
    options: StudyOptions,
    *,
    earlier: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CHECKPOINT]...",
            help="More checkpoints of the same run; or one folder instead of all. Ordered by the last number of their "
            "names, else by the step or epoch stored in them, else as given.",
        ),
    ] = None,
) -> int:
    """Compare what several checkpoints of one training run leak: on average, and of the most exposed sample.

    Exit codes: as scan; 130 interrupted. A checkpoint that can't be audited is a row with its reason.
    """
    paths = [*(earlier or []), subject.checkpoint]

    def load() -> tuple[Checkpoint, Samples]:
        return _last_readable(subject, paths)

    def run(_: Checkpoint, samples: Samples, settings: AuditSettings, how: StudyRun) -> AuditResult:
        from riskaudit.inputs import load_checkpoint
        from riskaudit.studies import training_study

        means, deviations = opt.numbers_of(subject.mean, "--mean"), opt.numbers_of(subject.std, "--std")
        read = partial(load_checkpoint, arch=subject.arch, mean=means, std=deviations)
        return training_study(paths, samples, settings, how, load=read)

    return run_study(ctx, subject, report, options, run, load)


def _last_readable(subject: SubjectOptions, paths: list[str]) -> tuple[Checkpoint, Samples]:
    """The last checkpoint that can be read, which says how samples are to be read, and the samples."""
    from riskaudit.inputs.series import checkpoint_files, order_of

    snapshots, _ = order_of(checkpoint_files(paths))
    reason: Exception | None = None
    for snapshot in reversed(snapshots):
        try:
            return replace(subject, checkpoint=str(snapshot.path)).load()
        except (CheckpointError, ArchitectureError) as error:
            reason = reason or error
    assert reason is not None
    if len(snapshots) == 1:
        raise reason
    raise CheckpointError(f"none of the {len(snapshots)} checkpoints can be read (the last: {reason})") from reason
