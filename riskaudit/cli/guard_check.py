"""``riskaudit guard-check``: is this policy sound, and what does a review cost here?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from riskaudit.cli import options as opt
from riskaudit.cli.console import progress
from riskaudit.cli.sources import input_paths
from riskaudit.errors import SettingsError
from riskaudit.files import check_output_file, is_json_with, names_code, read_toml, write_file
from riskaudit.policy import Policy

if TYPE_CHECKING:
    from riskaudit.guard.cost import ReviewCost

# What the [guard] table may hold, and of which type.
_ENTRIES: dict[str, tuple[type, ...]] = {
    "checkpoint": (str,),
    "data": (str,),
    "arch": (str,),
    "weights": (str,),
    "batch_size": (int,),
    "classes": (str,),
    "scale": (int, float),
    "split": (str,),
    "loss": (str,),
    "release": (str,),
    "prior": (str,),
    "prior_std": (int, float),
}


def guard_check(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file with a [policy] and a [guard] table.")],
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="Model weights (default: checkpoint of the [guard] table).")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Samples to make batches of (default: data of the [guard] table).")
    ] = None,
    arch: opt.ArchOption = None,
    weights: opt.WeightsOption = None,
    loss: Annotated[
        str | None, typer.Option("--loss", help="As of scan (default: loss of the [guard] table, or cross-entropy).")
    ] = None,
    classes: opt.ClassesOption = None,
    scale: opt.ScaleOption = None,
    split: opt.SplitOption = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Samples per review (default: 32).")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Reviews to time after a first one.")] = 5,
    out: Annotated[Path | None, typer.Option("--json", help="Write the figures there too.")] = None,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> int:
    """Validate a policy, and measure on your model and data what a review costs per round on this machine.

    Without a checkpoint and data the policy is only validated. Exit codes: 0 sound, 2 not.
    """
    policy, settings = _read(config)
    if not policy.limits:
        raise SettingsError(f"expected a limit in the policy of {config}, found none; set max_revealed or min_rmse")
    given: dict[str, Any] = {
        "checkpoint": checkpoint, "data": data, "arch": arch, "weights": weights, "loss": loss,
        "batch_size": batch_size, "classes": classes, "scale": scale, "split": split,
    }  # fmt: skip
    settings |= {name: value for name, value in given.items() if value is not None}
    typer.echo(f"policy of {config}: " + ", ".join(f"{name} = {value}" for name, value in _shown(policy).items()))
    if "checkpoint" not in settings or "data" not in settings:
        typer.echo("no checkpoint and data were given, so nothing was measured")
        return 0
    if out is not None:
        sources = input_paths([config, *settings.values()])
        check_output_file(out, sources, lambda path: is_json_with(path, ("review_seconds", "batch_size")))
    cost = _measured(policy, settings, repeats, quiet)
    _print(cost, policy)
    if out is not None:
        found = asdict(cost) | {
            "gradients": cost.gradients, "epoch_share": cost.epoch_share, "budget_seconds": cost.budget_seconds,
        }  # fmt: skip
        write_file(out, (json.dumps(found, indent=1) + "\n").encode())
    return 0


def _read(config: Path) -> tuple[Policy, dict[str, Any]]:
    """The policy and the guard's settings in a file.

    Raises:
        SettingsError: an entry that is unknown or of another kind.
    """
    settings = read_toml(config).get("guard", {})
    if not isinstance(settings, dict):
        raise SettingsError(f"expected a table [guard] in {config}, found {settings!r}")
    for name, value in settings.items():
        if name not in _ENTRIES:
            raise SettingsError(f"expected entries {', '.join(_ENTRIES)} in [guard] of {config}, found {name!r}")
        if not isinstance(value, _ENTRIES[name]) or isinstance(value, bool):
            raise SettingsError(f"expected {name} in [guard] of {config} to be a {_ENTRIES[name][0].__name__}")
    for name, value in settings.items():
        if isinstance(value, str) and names_code(value):
            raise SettingsError(
                f"a policy file can't name code that is run, but {name} in [guard] of {config} does; give --{name} on "
                "the command line"
            )
    return Policy.from_file(config), dict(settings)


def _measured(policy: Policy, settings: dict[str, Any], repeats: int, quiet: bool) -> ReviewCost:
    from riskaudit.guard import Guard
    from riskaudit.guard.cost import review_cost
    from riskaudit.inputs import class_list, fit_together, load_checkpoint, load_loss, load_samples

    size = settings.get("batch_size", 32)
    checkpoint = load_checkpoint(settings["checkpoint"], arch=settings.get("arch"), weights=settings.get("weights"))
    loss = load_loss(settings.get("loss", "cross-entropy"))
    samples = load_samples(
        settings["data"], channels=checkpoint.input_channels, limit=size * (repeats + 1), loss=loss,
        classes=class_list(settings["classes"]) if "classes" in settings else None,
        num_classes=checkpoint.num_classes, scale=settings.get("scale"), split=settings.get("split"),
    )  # fmt: skip
    checkpoint, samples = fit_together(checkpoint, samples, loss)
    for note in (*checkpoint.notes, *samples.notes):
        typer.echo(f"note: {note}")
    if checkpoint.assumed is not None:
        typer.echo(
            f"WARNING: {checkpoint.architecture} was only recognised from names and shapes (assumed: "
            f"{checkpoint.assumed}), so what reviews let go here says nothing of your model; if the assumption is "
            f"right say so with --arch {checkpoint.architecture}, else name your own model with --arch file.py:factory"
        )
    if not ("prior" in settings or "prior_std" in settings):
        settings["prior_std"] = float(samples.inputs.std())
    limits = Policy.from_mapping(
        {name: value for name, value in asdict(policy).items() if value is not None and name != "max_total_revealed"}
    )
    if not limits.limits:
        raise SettingsError("max_total_revealed alone can't be measured without a ledger; set max_revealed as well")
    guard = Guard(
        checkpoint.model, settings.get("loss", "cross-entropy"), limits, prior=settings.get("prior"),
        prior_std=None if "prior" in settings else settings["prior_std"], release=settings.get("release", "gradient"),
    )  # fmt: skip
    with progress(quiet, "reviewed", "batches") as update:
        return review_cost(guard, samples, min(size, len(samples)), repeats, update)


def _shown(policy: Policy) -> dict[str, Any]:
    return {name: value for name, value in asdict(policy).items() if value is not None}


def _print(cost: ReviewCost, policy: Policy) -> None:
    """What was measured, and what to do with it."""
    actions = ", ".join(f"{count} {action}" for action, count in sorted(cost.actions.items()))
    typer.echo(f"reviews of {cost.batch_size} samples: {actions}")
    for warning in cost.warnings:
        typer.echo(f"warning of a review: {warning}")
    typer.echo(
        f"one review: {cost.review_seconds:.3g} s, {cost.gradients:.3g} gradients of the batch "
        f"({cost.products:.3g} products per sample); the first one {cost.first_seconds:.3g} s"
    )
    typer.echo(f"one review per round: {cost.epoch_share:.0%} of a local epoch of {cost.epoch_batches} batches")
    if policy.budget_seconds is None:
        typer.echo(f"no budget is set; budget_seconds = {cost.budget_seconds:.2g} would leave room")
    elif policy.budget_seconds < cost.slowest_seconds:
        typer.echo(
            f"budget_seconds = {policy.budget_seconds:g} is too short: reviews took {cost.slowest_seconds:.3g} s, "
            "and samples left over are not assessed"
        )
