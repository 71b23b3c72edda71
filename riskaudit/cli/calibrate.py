"""``riskaudit calibrate``: attack a calibration set once, for scans with intervals of stated coverage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riskaudit.cli.console import progress
from riskaudit.cli.groups import AttackOptions, SubjectOptions, takes_options
from riskaudit.cli.recorded import recorded_command
from riskaudit.cli.sources import inputs_of
from riskaudit.cli.verify import trials_beside
from riskaudit.errors import SettingsError
from riskaudit.files import check_output_file, is_json_with
from riskaudit.formatting import number


@takes_options(SubjectOptions, AttackOptions)
def calibrate(
    ctx: typer.Context,
    subject: SubjectOptions,
    attack: AttackOptions,
    *,
    out: Annotated[Path, typer.Option("--out", help="File for the calibration, calibration.json say.")],
    coverage: Annotated[float, typer.Option("--coverage", help="Probability with which intervals hold.")] = 0.9,
) -> int:
    """Attack samples once, so that scan --calibration says how far attacks stray from their prediction.

    Use samples other than those scanned later, from the same source. Exit codes: 0 written, 2 not.
    """
    check_output_file(out, inputs_of(ctx), lambda path: is_json_with(path, ("binding", "coverage", "levels")))
    if attack.tune:
        raise SettingsError("calibrate takes no --tune: attacks must be those that the scanned samples would meet")

    from riskaudit.studies.calibrate.run import calibrate as run

    settings, attacks = subject.settings(), attack.settings()
    model, samples = subject.load()
    log = trials_beside(out)
    with progress(subject.quiet, "attacked") as update:
        found = run(
            model, samples, settings, attacks, noise_stds=attack.noise_std or (), coverage=coverage,
            command=recorded_command(ctx, subject.checkpoint, subject.data), progress=update, log=log,
            resume=attack.resume,
        )  # fmt: skip
    found.save(out)
    log.unlink(missing_ok=True)
    if not subject.quiet:
        for level in found.levels:
            ends = [number(end) if end is not None else "unknown" for end in (level.low_factor, level.high_factor)]
            typer.echo(
                f"noise {level.noise_std:g}: strongest attack / {level.proxy} between {ends[0]} and {ends[1]} for "
                f"{coverage:.0%} of samples ({level.num_samples} attacked)"
            )
        typer.echo(f"wrote {out}")
    return 0
