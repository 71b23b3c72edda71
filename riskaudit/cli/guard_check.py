"""``riskaudit guard-check``: is this policy sound, and what does a review cost here?"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic.dataclasses import dataclass

from riskaudit.audit.settings import find_prior
from riskaudit.audit.subject import ModelOptions, ReadingOptions
from riskaudit.cli.console import progress, working
from riskaudit.cli.invocation import input_paths
from riskaudit.cli.models import ConsoleOptions
from riskaudit.cli.options import command, in_options
from riskaudit.errors import SettingsError
from riskaudit.files import (
    check_output_file,
    find_code,
    find_model,
    find_samples,
    is_json_with,
    names_code,
    read_toml,
    write_file,
)
from riskaudit.formatting import count
from riskaudit.settings import CHECKED, Count, Positive, option

# Of a gradient, below which calls into the framework are most of it, and shares of it are noise.
LEAST_SECONDS = 1e-3

if TYPE_CHECKING:
    from riskaudit.guard.cost import ReviewCost
    from riskaudit.policy import Policy


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GuardOptions(ReadingOptions, ModelOptions):
    """What a [guard] table may hold; an option of the command line wins over it."""

    checkpoint: str | None = option(None, "Model weights (default: checkpoint of the [guard] table).", check=find_model)
    data: str | None = option(
        None, "Samples to make batches of (default: data of the [guard] table).", check=find_samples
    )
    loss: str | None = option(
        None, "As of scan (default: loss of the [guard] table, or cross-entropy).", check=find_code
    )
    batch_size: Count | None = option(None, "Samples per review (default: 32).")
    release: str | None = None
    prior: str | None = None
    prior_std: Positive | None = None


@command
def guard_check(
    options: GuardOptions,
    console: ConsoleOptions,
    *,
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file with a [policy] and a [guard] table.")],
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Reviews to time after a first one.")] = 5,
    out: Annotated[Path | None, typer.Option("--json", help="Write the figures there too.")] = None,
) -> int:
    """Validate a policy, and measure on your model and data what a review costs per round on this machine.

    With a release of local training (local:epochs=5:batch=8:lr=0.1) a review is of a whole round of it. Without a
    checkpoint and data the policy is only validated. Exit codes: 0 sound, 2 not.
    """
    from riskaudit.policy import Policy

    table, policy = _guard_table(config), Policy.from_file(config)
    if not policy.limits:
        raise SettingsError(f"expected a limit in the policy of {config}, found none; set max_revealed or min_rmse")
    options = replace(table, **{name: value for name, value in asdict(options).items() if value is not None})
    options.check_sources()
    if options.prior is not None:
        find_prior(options.prior)
    limits = (f"{name} = {value}" for name, value in asdict(policy).items() if value is not None)
    typer.echo(f"policy of {config}: {', '.join(limits)}")
    _lint(policy, options)
    if options.checkpoint is None or options.data is None:
        typer.echo("no checkpoint and data were given, so nothing was measured")
        return 0
    if out is not None:
        sources = input_paths([config, *asdict(options).values()])
        check_output_file(out, sources, lambda path: is_json_with(path, ("review_seconds", "batch_size")))
    cost = _measured(policy, options, repeats, console.quiet)
    _print(cost, policy)
    if out is not None:
        figures = asdict(cost) | {
            "units": cost.units, "epoch_share": cost.epoch_share, "budget_seconds": cost.budget_seconds,
        }  # fmt: skip
        write_file(out, (json.dumps(figures, indent=1) + "\n").encode())
    return 0


def _guard_table(config: Path) -> GuardOptions:
    """The [guard] table of a file."""
    table = read_toml(config).get("guard", {})
    if not isinstance(table, dict):
        raise SettingsError(f"expected a table [guard] in {config}, found {table!r}")
    for name, value in table.items():
        if isinstance(value, str) and names_code(value):
            raise SettingsError(
                f"a policy file can't name code that is run, but {name} in [guard] of {config} does; give --{name} on "
                "the command line"
            )
    try:
        return GuardOptions(**table)
    except SettingsError as error:
        raise SettingsError(f"{error} in [guard] of {config}") from None


def _lint(policy: Policy, options: GuardOptions) -> None:
    """Say what in the settings is hardly meant; refuse what is an error.

    Raises:
        SettingsError: the first error.
        ReleaseError: a release that can't be read.
    """
    if options.release is None:
        return
    from riskaudit.guard.attestation.declaration import Declaration
    from riskaudit.guard.attestation.lint import lint

    for finding in lint(Declaration.parse(options.release, batch_size=options.batch_size), policy=policy):
        if finding.severity == "error":
            raise SettingsError(f"{finding.id}: {finding.message}; {finding.advice}")
        typer.echo(f"{finding.severity}: {finding.id}: {finding.message}; {finding.advice}")


def _measured(policy: Policy, options: GuardOptions, repeats: int, quiet: bool) -> ReviewCost:
    from riskaudit.guard import Guard
    from riskaudit.guard.cost import review_cost
    from riskaudit.inputs import fit_together, load_checkpoint, load_loss

    size, loss_name = options.batch_size or 32, options.loss or "cross-entropy"
    with working(quiet, "reading the model and the samples"):
        checkpoint = load_checkpoint(str(options.checkpoint), arch=options.arch, weights=options.weights)
        loss = load_loss(loss_name)
        samples = options.samples(
            str(options.data), channels=checkpoint.input_channels, limit=size * (repeats + 1), loss=loss,
            num_classes=checkpoint.num_classes,
        )  # fmt: skip
        checkpoint, samples = fit_together(checkpoint, samples, loss)
    for note in (*checkpoint.notes, *samples.notes):
        typer.echo(f"note: {in_options(note)}")
    if checkpoint.assumed is not None:
        typer.echo(
            f"WARNING: {checkpoint.architecture} was only recognised from names and shapes (assumed: "
            f"{checkpoint.assumed}), so what reviews let go here says nothing of your model; if the assumption is "
            f"right say so with --arch {checkpoint.architecture}, else name your own model with --arch file.py:factory"
        )
    prior_std = options.prior_std
    if options.prior is None and prior_std is None:
        prior_std = float(samples.inputs.std())
    limits = replace(policy, max_total_revealed=None)
    if not limits.limits:
        raise SettingsError("max_total_revealed alone can't be measured without a ledger; set max_revealed as well")
    guard = Guard(
        checkpoint.model, loss_name, limits, prior=options.prior,
        prior_std=None if options.prior is not None else prior_std, release=options.release or "gradient",
    )  # fmt: skip
    if guard.client.is_joint:
        # Local training normalises with the statistics of its mini-batches.
        checkpoint.model.train()
    with progress(quiet, "reviewed", "batches") as update:
        return review_cost(guard, samples, min(size, len(samples)), repeats, update)


def _print(cost: ReviewCost, policy: Policy) -> None:
    """What was measured, and what to do with it."""
    actions = ", ".join(f"{count} {action}" for action, count in sorted(cost.actions.items()))
    typer.echo(f"reviews of {count(cost.batch_size, 'sample')}: {actions}")
    for warning in cost.warnings:
        typer.echo(f"warning of a review: {in_options(warning)}")
    if cost.unit == "training":
        typer.echo(
            f"one review: {cost.review_seconds:.3g} s, {cost.units:.3g} times the round's own training of "
            f"{cost.unit_seconds:.3g} s ({cost.products:.3g} pulls); the first one {cost.first_seconds:.3g} s, "
            f"and {cost.setup_seconds:.3g} s once before it (Guard.prepare)"
        )
    else:
        is_timed, epoch_seconds = cost.unit_seconds >= LEAST_SECONDS, cost.epoch_batches * cost.unit_seconds
        gradients = f"{cost.units:.3g} gradients of the batch" if is_timed else "beside a gradient of the batch"
        typer.echo(
            f"one review: {cost.review_seconds:.3g} s, {gradients} of {cost.unit_seconds:.3g} s "
            f"({cost.products:.3g} products per sample); the first one {cost.first_seconds:.3g} s, "
            f"and {cost.setup_seconds:.3g} s once before it (Guard.prepare)"
        )
        share = f"{cost.epoch_share:.0%} of" if is_timed else "beside"
        typer.echo(
            f"one review per round: {share} a local epoch of {count(cost.epoch_batches, 'batch', 'batches')} in "
            f"{epoch_seconds:.3g} s"
        )
        if not is_timed:
            typer.echo(
                "so short a gradient says nothing of the cost beside real training: go by the seconds of a review"
            )
    if policy.budget_seconds is None:
        typer.echo(f"no budget is set; budget_seconds = {cost.budget_seconds:.2g} would leave room")
    elif policy.budget_seconds < cost.slowest_seconds:
        typer.echo(
            f"budget_seconds = {policy.budget_seconds:g} is too short: reviews took {cost.slowest_seconds:.3g} s, "
            "and samples left over are not assessed"
        )
