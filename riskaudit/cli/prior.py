"""``riskaudit prior fit``: what an attacker may know of inputs, from public or own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riskaudit.audit.subject import SampleOptions
from riskaudit.cli.invocation import input_paths
from riskaudit.cli.models import ConsoleOptions
from riskaudit.cli.options import command, in_options
from riskaudit.errors import PriorError
from riskaudit.files import check_output_file, find_samples

# What the header of every prior file holds (see riskaudit.priors.storage, which loads torch).
PRIOR_KEY = b'"riskaudit_prior"'

prior = typer.Typer(
    help="Fit what an attacker knows of inputs beforehand.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@prior.callback()
def _group() -> None:
    """A callback keeps ``fit`` a command of its own even while it is the only one."""


@prior.command("fit")
@command
def fit(
    reading: SampleOptions,
    console: ConsoleOptions,
    *,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Samples, in any format that scan takes.")],
    out: Annotated[Path, typer.Option("--out", help="File for the prior, prior.safetensors say.")],
    kind: Annotated[
        str,
        typer.Option(
            "--kind", help="data: one Gaussian for all images, which need no labels; class: one per class as well."
        ),
    ] = "data",
    components: Annotated[
        int | None,
        typer.Option("--components", help="Principal components kept per Gaussian, at most (default: 1024)."),
    ] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", help="Channels of the images, where the data can't tell.")
    ] = None,
) -> int:
    """Fit a Gaussian prior to images, for scan --prior FILE.

    Best fitted to data like the audited, but not the audited data itself. Exit codes: 0 written, 2 not.
    """
    find_samples(data)
    check_output_file(out, input_paths([data]), _is_prior)

    from riskaudit.priors import fit_prior, save_prior

    samples = reading.samples(
        data, channels=channels, limit=reading.limit, plain_ids=reading.plain_ids, labelled=kind == "class"
    )
    if kind == "class" and samples.numbering == "position":
        raise PriorError(
            f"the classes of {samples.name} have names, and the numbers that a model gives them are unknown; name all "
            "classes of the model in the order of its outputs with --classes"
        )
    fitted = fit_prior(samples, kind, components)
    save_prior(fitted, out)
    if not console.quiet:
        info = fitted.info()
        typer.echo(
            f"wrote {out}: {info.kind} prior from {info.num_images} samples of {samples.name}, "
            f"standard deviation {info.std:.3g} per coordinate"
        )
        for note in samples.notes:
            typer.echo(f"note: {in_options(note)}")
    return 0


def _is_prior(path: Path) -> bool:
    with path.open("rb") as stream:
        return PRIOR_KEY in stream.read(2**16)
