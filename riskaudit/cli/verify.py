"""``riskaudit verify``: the proxies against full attack runs."""

from __future__ import annotations

from pathlib import Path

import typer

from riskaudit.cli.console import progress
from riskaudit.cli.groups import AttackOptions, ReportOptions, SubjectOptions, takes_options
from riskaudit.cli.recorded import recorded_command
from riskaudit.cli.scan import Desk
from riskaudit.errors import SettingsError

EXIT_INTERRUPTED = 130


@takes_options(SubjectOptions, ReportOptions, AttackOptions)
def verify(ctx: typer.Context, subject: SubjectOptions, report: ReportOptions, attack: AttackOptions) -> int:
    """Audit a release, attack it, and say how well the proxies foresaw the attacks.

    Ctrl-C while attacks run writes what is finished; --resume with the same --out goes on.
    Exit codes: as scan; 130 interrupted.
    """
    if attack.resume and report.out is None:
        raise SettingsError("--resume needs the --out of the run that was interrupted")
    desk = Desk(ctx, subject, report)

    # Everything above is checked before torch is loaded.
    from riskaudit.studies.verify.run import verify as run
    from riskaudit.studies.verify.tuning import NUM_SAMPLES, split_for_tuning

    settings = subject.settings(**report.settings(desk.limits.policy))
    attacks = attack.settings()
    model, samples = subject.load(NUM_SAMPLES if attack.tune else 0)
    tuning = None
    if attack.tune:
        samples, tuning = split_for_tuning(samples, subject.limit)
    log = trials_beside(desk.folder)
    with progress(subject.quiet, "audited and attacked") as update:
        result = run(
            model, samples, settings, attacks, noise_stds=attack.noise_std or (), tuning_samples=tuning,
            show_samples=report.show_samples, command=recorded_command(ctx, subject.checkpoint, subject.data),
            progress=update, log=log, resume=attack.resume,
        )  # fmt: skip
    outcome = desk.deliver(result)
    if result.studies.verify is None or not result.studies.verify.complete:
        typer.echo(f"interrupted: finished attacks are in the report; --out {desk.folder} --resume goes on", err=True)
        return EXIT_INTERRUPTED
    log.unlink(missing_ok=True)
    return outcome


def trials_beside(place: Path) -> Path:
    """The file of finished trials for a result."""
    return place.with_name(f"{place.name}.trials.jsonl")
