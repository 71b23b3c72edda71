"""``riskaudit attest``: whether what is about to leave is what was declared."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from pydantic.dataclasses import dataclass

from riskaudit.cli.console import working
from riskaudit.cli.invocation import inputs_of, recorded_command
from riskaudit.cli.models import ConsoleOptions
from riskaudit.cli.options import command, in_options
from riskaudit.files import check_output_folder, find_code, find_model, write_folder
from riskaudit.formatting import number
from riskaudit.report.attestation import FORMATS, render_attestation
from riskaudit.settings import CHECKED, INPUTS, OUTPUT, POLICY, RELEASE, SOLVERS, Count, Positive, option

if TYPE_CHECKING:
    from riskaudit.results.attestation import Attestation, AttestationTest

EXIT_NOT_AS_DECLARED = 1
EXIT_COULD_NOT_TELL = 2


def _find_policy(path: str) -> None:
    """Read a policy, only to see whether it can be."""
    from riskaudit.policy import Policy

    Policy.from_file(path)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AttestOptions(ConsoleOptions):
    """What is attested, against what, and where the result goes."""

    update: str = option(
        ...,
        "What is about to leave: .safetensors, .pt or .npz.",
        argument="UPDATE",
        recorded=False,
        file=True,
        check=find_model,
    )
    declared: str = option(
        ..., "What was declared of it, as --release of scan: clip:1,gaussian:0.01; noise is per entry sent.", RELEASE
    )
    received: str | None = option(
        None,
        "The model that was received: names, shapes and dtypes are compared with it.",
        INPUTS,
        file=True,
        check=find_model,
    )
    clean: str | None = option(
        None, "The update before its noise: the noise itself is tested then.", INPUTS, file=True, check=find_model
    )
    arch: str | None = option(
        None, "Architecture of --received (see riskaudit list) or file.py:factory.", INPUTS, file=True, check=find_code
    )
    loss: str | None = option(
        None, "cross-entropy where the update is trained with it: sums over classes are noise alone then.", RELEASE
    )
    batch_size: Count | None = option(None, "Samples in the mean, where --declared has no mean:N.", RELEASE)
    sensitivity: Positive | None = option(None, "2-norm that the noise was computed for.", RELEASE)
    noise_multiplier: Positive | None = option(None, "Std of the noise over the sensitivity.", RELEASE)
    policy: str | None = option(
        None, "A guard's policy, which is looked at for contradictions.", POLICY, file=True, check=_find_policy
    )
    false_alarm: float = option(1e-3, "Probability, at most, that an update which is as declared is refused.", SOLVERS)
    format: tuple[str, ...] = option(
        ("json",),
        "Repeatable (default: json).",
        OUTPUT,
        choices={name: name for name in FORMATS},
        recorded=False,
    )
    out: Path | None = option(
        None, "Folder for the results (default: reports/UPDATE-TIME).", OUTPUT, recorded=False, written=True
    )


@command
def attest(ctx: typer.Context, options: AttestOptions) -> int:
    """Hold what is about to leave to what was declared of it: norm, noise, and nothing else in it.

    Exit codes: 0 as declared; 1 not as declared, or an error in the declaration; 2 could not tell.
    """
    folder = options.out or Path("reports") / f"{Path(options.update).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    check_output_folder(folder, inputs_of(ctx))

    # Everything above is checked before torch is loaded.
    from riskaudit.guard.attestation.attest import attest as hold_to

    with working(options.quiet, "testing the update"):
        result = hold_to(
            options.update,
            options.declared,
            received=options.received,
            clean=options.clean,
            arch=options.arch,
            loss=options.loss,
            batch_size=options.batch_size,
            sensitivity=options.sensitivity,
            noise_multiplier=options.noise_multiplier,
            policy=options.policy,
            false_alarm=options.false_alarm,
            command=recorded_command(ctx),
        )
    files = render_attestation(result, options.format, spelling=in_options)
    write_folder(folder, files)
    if not options.quiet:
        _print(result, [folder / name for name in files])
    if result.rejections or result.errors:
        return EXIT_NOT_AS_DECLARED
    return 0 if result.outcome == "as_declared" else EXIT_COULD_NOT_TELL


def _print(result: Attestation, files: list[Path]) -> None:
    """What was tested and what came of it, on stdout."""
    from riskaudit.results.attestation import NO_PROOF

    typer.echo(in_options(result.verdict))
    for words in result.would_tell[1:]:
        typer.echo(f"or give {in_options(words)}")
    for test in result.tests:
        if test.status != "not_applicable":
            typer.echo(f"{test.status.replace('_', ' ')}: {test.id}: {in_options(test.reason)}{_rates(test)}")
    for finding in result.findings:
        typer.echo(f"{finding.severity}: {finding.id}: {finding.message}; {finding.advice}")
    for words in result.not_told:
        typer.echo(f"can't be told: {in_options(words)}")
    typer.echo(NO_PROOF)
    for path in files:
        typer.echo(f"wrote {path}")


def _rates(test: AttestationTest) -> str:
    """The error rates of a test that has any."""
    if not test.false_alarm:
        return ""
    power = "unknown" if test.power is None else number(test.power)
    return f" (false alarms at most {number(test.false_alarm)}; power at {test.power_at}: {power})"
