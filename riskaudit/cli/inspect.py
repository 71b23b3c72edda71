"""``riskaudit inspect``: signs that a received model was changed so that its gradients tell more."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from pydantic.dataclasses import dataclass

from riskaudit.audit.subject import LossOptions
from riskaudit.cli.console import progress
from riskaudit.cli.invocation import inputs_of, recorded_command
from riskaudit.cli.models import SubjectOptions
from riskaudit.cli.options import command, in_options
from riskaudit.errors import ResultError
from riskaudit.files import check_output_folder, find_model, write_folder
from riskaudit.report.inspection import FORMATS, render_inspection
from riskaudit.settings import CHECKED, INPUTS, OUTPUT, SOLVERS, Count, Seed, option

if TYPE_CHECKING:
    from riskaudit.results.inspection import InspectionResult

EXIT_FLAGGED = 1


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class InspectOptions(LossOptions):
    """What is inspected beside the model, and where the result goes."""

    previous: str | None = option(
        None,
        "The model of the round before: finds changes that training doesn't make.",
        INPUTS,
        file=True,
        check=find_model,
    )
    batch_size: Count | None = option(
        None, "Samples that the client takes the gradient of at once (default: 16).", INPUTS
    )
    seed: Seed = option(0, "Seed of the freshly initialised models.", SOLVERS)
    format: tuple[str, ...] = option(
        ("html", "json"),
        "Repeatable (default: html, json).",
        OUTPUT,
        choices={name: name for name in FORMATS},
        recorded=False,
    )
    out: Path | None = option(
        None, "Folder for the results (default: reports/RECEIVED-TIME).", OUTPUT, recorded=False, written=True
    )


@partial(command, omit={"workers"})
def inspect(ctx: typer.Context, subject: SubjectOptions, options: InspectOptions) -> int:
    """Look for signs that a received model was changed by the server so that its gradients tell more.

    Before training on it. Exit codes: 0 nothing flagged; 1 a sign is flagged; 2 could not inspect. No sign is a proof.
    """
    folder = options.out or Path("reports") / f"{Path(subject.checkpoint).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    check_output_folder(folder, inputs_of(ctx))

    # Everything above is checked before torch is loaded.
    from riskaudit.audit.inspection import inspect_received
    from riskaudit.inputs import load_checkpoint

    received, samples = subject.load(options.loss)
    previous = None
    if options.previous is not None:
        previous = load_checkpoint(
            options.previous, arch=subject.arch, weights=subject.weights, mean=subject.mean, std=subject.std
        )
    with progress(subject.quiet, "inspected", "models") as update:
        result = inspect_received(
            received,
            samples,
            previous=previous,
            batch_size=options.batch_size,
            loss=options.loss,
            seed=options.seed,
            command=recorded_command(ctx),
            progress=update,
        )
    files = render_inspection(result, options.format, spelling=in_options)
    write_folder(folder, files, private=subject.plain_ids)
    if not subject.quiet:
        _print(result, [folder / name for name in files])
    if result.flagged:
        return EXIT_FLAGGED
    if result.failures:
        raise ResultError(result.verdict)
    return 0


def _print(result: InspectionResult, files: list[Path]) -> None:
    """What was found, in a few lines on stdout."""
    from riskaudit.results.inspection import NO_PROOF

    typer.echo(result.verdict)
    for row in result.flags:
        typer.echo(f"{row.id} at {row.layer or 'the whole model'}: {row.reason}")
    for words in result.compared_with.not_judged:
        typer.echo(f"not judged: {in_options(words)}")
    typer.echo(NO_PROOF)
    for warning in result.warnings:
        typer.echo(f"note: {in_options(warning)}")
    for path in files:
        typer.echo(f"wrote {path}")
