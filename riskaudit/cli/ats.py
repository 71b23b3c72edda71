"""``riskaudit ats search``: which transformation of images to train on, by the two scores of ATS on one's own data."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from pydantic.dataclasses import dataclass

from riskaudit.audit.subject import LossOptions
from riskaudit.cli.console import progress
from riskaudit.cli.invocation import inputs_of
from riskaudit.cli.models import SubjectOptions
from riskaudit.cli.options import command, in_options
from riskaudit.files import check_output_file, find_model, write_file
from riskaudit.settings import CHECKED, INPUTS, OUTPUT, SOLVERS, Count, Seed, option

if TYPE_CHECKING:
    from torch import nn

    from riskaudit.audit.client import Client
    from riskaudit.release.policy_search import PolicyScore

# How a file of scores begins.
_START = b'{\n "written_by": "riskaudit ats search"'
# Policies that are printed; the file has all.
SHOWN = 10

ats = typer.Typer(
    help="Transformations of images that a client trains on (ATS).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@ats.callback()
def _group() -> None:
    """A callback keeps ``search`` a command of its own even while it is the only one."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SearchOptions(LossOptions):
    """Which policies are scored, and on what."""

    untrained: str | None = option(
        None,
        "The model before training, whose accuracy score counts (default: CHECKPOINT itself).",
        INPUTS,
        file=True,
        check=find_model,
    )
    policies: Count = option(100, "Policies that are drawn and scored, at most.", SOLVERS)
    entries: Count = option(3, "Entries of the library in a policy, at most.", SOLVERS)
    private_images: Count = option(50, "Images that privacy is scored on, at most; accuracy is on all.", SOLVERS)
    least_accuracy: float | None = option(
        None,
        "Policies below are not recommended (default: -85, where there are 100 images or more; else none).",
        SOLVERS,
    )
    seed: Seed = option(0, "Seed of the policies that are drawn, and of what they draw.", SOLVERS)
    out: Path | None = option(None, "File for all scores, scores.json say.", OUTPUT, recorded=False, written=True)


@ats.command("search")
@partial(command, omit={"workers"})
def search(ctx: typer.Context, subject: SubjectOptions, options: SearchOptions) -> int:
    """Score policies of transformations on your own images, without training or attacks, and name the safest.

    Privacy is how soon the gradient turns towards that of the image (lower is safer), accuracy how differently the
    outputs depend on different images (higher is better). Neither says what a gradient gives away: scan with the
    release that is named. Exit codes: 0 scored; 2 not.
    """
    if options.out is not None:
        check_output_file(options.out, inputs_of(ctx), _is_search)

    # Everything above is checked before torch is loaded.
    from riskaudit.release.policy_search import GROUP, LEAST_ACCURACY, draw_policies, safest, search_policies

    client, model = _client(subject, options, subject.checkpoint)
    images = client.batch(list(range(len(client.samples))))
    untrained = None if options.untrained is None else _client(subject, options, options.untrained)[1]
    drawn = draw_policies(options.policies, options.entries, options.seed)
    with progress(subject.quiet, "scored", "policies") as update:
        scores = search_policies(
            model,
            client.loss,
            images.inputs,
            images.targets,
            drawn,
            untrained=untrained,
            num_private=options.private_images,
            progress=update,
        )
    least = options.least_accuracy
    if least is None and len(images) >= GROUP:
        least = LEAST_ACCURACY
    chosen = safest(scores, least)
    if options.out is not None:
        write_file(options.out, _document(scores, chosen, least, len(images)).encode())
    if not subject.quiet:
        _print(scores, chosen, least)
        for note in client.samples.notes:
            typer.echo(f"note: {in_options(note)}")
        if options.out is not None:
            typer.echo(f"wrote {options.out}")
    return 0


def _client(subject: SubjectOptions, options: SearchOptions, checkpoint: str) -> tuple[Client, nn.Module]:
    from riskaudit.audit import AuditSettings
    from riskaudit.audit.client import make_client
    from riskaudit.audit.transformed import require_images

    loaded, samples = subject.load_from(checkpoint, options.loss)
    require_images(samples, "a search of their transformations", "it is defined for no others")
    client = make_client(loaded, samples, AuditSettings(release="gradient", loss=options.loss))
    return client, client.release.model


def _document(scores: list[PolicyScore], chosen: PolicyScore | None, least: float | None, num_images: int) -> str:
    document = {
        "written_by": "riskaudit ats search",
        "num_images": num_images,
        "least_accuracy": least,
        "release": None if chosen is None else _release(chosen),
        "policies": [
            {"policy": score.policy, "privacy": score.privacy, "accuracy": score.accuracy} for score in scores
        ],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _release(score: PolicyScore) -> str:
    return f"ats:{score.policy}"


def _print(scores: list[PolicyScore], chosen: PolicyScore | None, least: float | None) -> None:
    typer.echo("policy       privacy  accuracy")
    for score in scores[:SHOWN]:
        typer.echo(f"{score.policy:<11}  {score.privacy:>7.3f}  {score.accuracy:>8.1f}")
    if len(scores) > SHOWN:
        typer.echo(f"and {len(scores) - SHOWN} more")
    if chosen is None:
        typer.echo(f"none has an accuracy of {least:g} or more; lower --least-accuracy, or draw more --policies")
        return
    enough = "" if least is None else f" of those with an accuracy of {least:g} or more"
    typer.echo(f"safest{enough}: --release {_release(chosen)}")
    typer.echo("the scores are no audit: scan with that release says what a gradient still gives away")


def _is_search(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_START)) == _START
