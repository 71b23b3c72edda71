"""``riskaudit calibrate``: attack a calibration set once, for scans with intervals of stated coverage."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import typer
from pydantic.dataclasses import dataclass

from riskaudit.audit.settings import AuditSettings
from riskaudit.cli.console import progress
from riskaudit.cli.invocation import inputs_of, recorded_command
from riskaudit.cli.models import SubjectOptions, TrialOptions
from riskaudit.cli.options import command
from riskaudit.cli.verify import announcer, trials_beside, without_empty
from riskaudit.errors import SettingsError
from riskaudit.files import check_output_file, is_json_with
from riskaudit.settings import CHECKED, Probability, Settings, option
from riskaudit.studies.settings import AttackSettings

# What concerns the report of a scan.
UNUSED = (
    "target_rmse", "tolerances", "high", "medium", "calibration", "max_revealed", "min_rmse", "proxies",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CalibrationOptions(Settings):
    """What is calibrated."""

    out: Path = option(
        ..., "File for the calibration, calibration.json say.", recorded=False, written=True, aliases=("log",)
    )
    coverage: Probability = option(0.9, "Probability with which intervals hold.")


@partial(command, omit=UNUSED)
def calibrate(
    ctx: typer.Context, calibration: CalibrationOptions, subject: SubjectOptions, settings: AuditSettings,
    attacks: AttackSettings, trials: TrialOptions,
) -> int:  # fmt: skip
    """Attack samples once, so that scan --calibration says how far attacks stray from their prediction.

    Use samples other than those scanned later, from the same source. Exit codes: 0 written, 2 not.
    """
    # A budget counts reading the inputs too.
    started = time.monotonic()
    out = calibration.out
    check_output_file(out, inputs_of(ctx), lambda path: is_json_with(path, ("binding", "coverage", "levels")))
    if attacks.tune:
        raise SettingsError("calibrate takes no --tune: attacks must be those that the scanned samples would meet")

    from riskaudit.studies.base import StudyRun
    from riskaudit.studies.calibrate.run import calibrate as run

    model, samples = subject.load(settings.loss)
    log = trials_beside(out)
    with without_empty(log), progress(subject.quiet, "attacked") as update:
        study_run = StudyRun(
            log=log,
            resume=trials.resume,
            progress=update,
            command=recorded_command(ctx),
            workers=subject.workers,
            announce=announcer(subject.quiet),
            started=started,
        )
        result = run(
            model, samples, settings, attacks, study_run, noise_stds=trials.noise_stds, coverage=calibration.coverage
        )
    result.save(out)
    log.unlink(missing_ok=True)
    if not subject.quiet:
        from riskaudit.formatting import number
        from riskaudit.release.grammar import ReleaseSpec

        for level in result.levels:
            low, high = (
                "unknown" if factor is None else number(factor) for factor in (level.low_factor, level.high_factor)
            )
            typer.echo(
                f"noise {level.noise_std:g}: strongest attack / {level.proxy} between {low} and {high} for "
                f"{result.coverage:.0%} of samples ({level.num_samples} attacked)"
            )
        if ReleaseSpec.parse(result.release).is_joint:
            typer.echo(
                "attacks know no other sample of an upload: the outsider's numbers are calibrated, the informed not"
            )
        typer.echo(f"wrote {out}")
    return 0
