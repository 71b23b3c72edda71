"""``riskaudit verify``: the proxies against full attack runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from riskaudit.audit.settings import AuditSettings
from riskaudit.cli.console import progress
from riskaudit.cli.invocation import recorded_command
from riskaudit.cli.models import ReportOptions, SubjectOptions, TrialOptions
from riskaudit.cli.options import command
from riskaudit.cli.scan import Delivery
from riskaudit.errors import RiskauditError, SettingsError
from riskaudit.studies.settings import AttackSettings

if TYPE_CHECKING:
    from riskaudit.studies.rows import Forecast

EXIT_INTERRUPTED = 130
# What is said where a run may take long.
IN_TIME = "--budget SECONDS ends it in time, with the attacks that were run by then"
# How many times the longest run without a search that gets stuck the longest run of all may be, for it to say anything.
TELLING = 10.0


@command
def verify(
    ctx: typer.Context, subject: SubjectOptions, settings: AuditSettings, report: ReportOptions,
    attacks: AttackSettings, trials: TrialOptions,
) -> int:  # fmt: skip
    """Audit a release, attack it, and say how well the proxies foresaw the attacks.

    Ctrl-C while attacks run writes what is finished, and so does --budget; --resume with the same --out goes on.
    Exit codes: as scan; 130 interrupted.
    """
    # A budget counts reading the inputs too.
    started = time.monotonic()
    check_resumed(trials.resume, report.out)
    delivery = Delivery.of(ctx, subject, settings, report)

    # Everything above is checked before torch is loaded.
    from riskaudit.studies.base import StudyRun
    from riskaudit.studies.rows import TIME_REASONS
    from riskaudit.studies.verify.record import VerifyStudy
    from riskaudit.studies.verify.run import NUM_SAMPLES, split_for_tuning
    from riskaudit.studies.verify.run import verify as run

    model, samples = subject.load(settings.loss, NUM_SAMPLES if attacks.tune else 0)
    tuning = None
    if attacks.tune:
        samples, tuning = split_for_tuning(samples, subject.limit)
    log = trials_beside(delivery.folder)
    advice = "" if settings.budget else IN_TIME
    with without_empty(log), progress(subject.quiet, "audited and attacked", advice=advice) as update:
        study_run = StudyRun(
            log=log,
            resume=trials.resume,
            progress=update,
            command=recorded_command(ctx),
            show_samples=report.show_samples,
            workers=subject.workers,
            announce=announcer(subject.quiet, advice),
            started=started,
        )
        result = run(
            model, samples, delivery.settings, attacks, study_run, noise_stds=trials.noise_stds, tuning_samples=tuning
        )
    outcome = delivery.deliver(result)
    study = result.studies.get(VerifyStudy)
    if study is not None and study.stopped_by == "budget":
        missing = sum(row.status in TIME_REASONS for row in study.attacks)
        typer.echo(
            f"budget used up: {missing} of {len(study.attacks)} attacks on single samples didn't run to their end, "
            f"which says nothing of these samples; {goes_on(delivery.folder, log)}",
            err=True,
        )
        return outcome
    if study is None or not study.complete:
        typer.echo(f"interrupted: finished attacks are in the report; {goes_on(delivery.folder, log)}", err=True)
        return EXIT_INTERRUPTED
    log.unlink(missing_ok=True)
    return outcome


def announcer(quiet: bool, advice: str = "") -> Callable[[Forecast], None] | None:
    """Prints how long a run will take; None where nothing is to be printed, so that it isn't foretold either."""
    return None if quiet else lambda forecast: typer.echo(foretold(forecast, advice), err=True)


def foretold(forecast: Forecast, advice: str = "") -> str:
    """How long a run will take, in a line, and what to do where that is too long.

    What it takes should every search get stuck is said only where that is no more than `TELLING` times the range's end.
    """
    from riskaudit.formatting import duration

    longer = ""
    if forecast.most > forecast.high:
        is_telling = forecast.most <= TELLING * forecast.high
        longer = f", {duration(forecast.most)} at most" if is_telling else ", longer"
        longer += ", should searches get stuck"
    return (
        f"will take about {duration(forecast.low)} to {duration(forecast.high)}{longer} "
        f"(from timed steps on {forecast.num_timed} of the samples)" + (f"; {advice}" if advice else "")
    )


def check_resumed(resume: bool, out: Path | None) -> None:
    """Refuse to go on with a run that can't be found.

    Raises:
        SettingsError: no folder is named.
    """
    if resume and out is None:
        raise SettingsError("--resume needs the --out of the run that was interrupted")


def goes_on(folder: Path, log: Path) -> str:
    """How to go on with what isn't finished, and what the file of finished trials is for."""
    return f"--out {folder} --resume goes on from {log}, which may be deleted if that isn't wanted"


@contextmanager
def without_empty(log: Path) -> Iterator[None]:
    """Leave no file of trials behind where what is run is refused before the first of them is finished."""
    is_new = not log.exists()
    try:
        yield
    except RiskauditError:
        if is_new and log.exists() and len(log.read_bytes().splitlines()) == 1:
            log.unlink()
        raise


def trials_beside(result: Path) -> Path:
    """The file of finished trials for a result."""
    return result.with_name(f"{result.name}.trials.jsonl")
