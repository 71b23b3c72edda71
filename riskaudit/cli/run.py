"""``riskaudit run``: one audit as shards over processes, machines and schedulers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic.dataclasses import dataclass

from riskaudit.audit.settings import AuditSettings
from riskaudit.audit.subject import SourceOptions
from riskaudit.cli.config import read_config
from riskaudit.cli.console import progress
from riskaudit.cli.invocation import input_paths, recorded_command
from riskaudit.cli.models import ConsoleOptions, ReportOptions
from riskaudit.cli.options import command
from riskaudit.cli.scan import Delivery, limits_of
from riskaudit.cli.verify import EXIT_INTERRUPTED
from riskaudit.errors import SettingsError
from riskaudit.files import find_model
from riskaudit.formatting import count, number
from riskaudit.settings import CHECKED, INPUTS, OUTPUT, SOLVERS, Count, Positive, Settings, option

EXIT_INCOMPLETE = 1

run = typer.Typer(
    help="One audit as shards over processes, machines, Ray and SLURM, which share a folder; a rerun resumes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that riskaudit run create made.")]
_CONFIG = "Options from a TOML file (default: riskaudit.toml here, or \\[tool.riskaudit] in pyproject.toml here)."


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CreateOptions(Settings):
    """What a run is made of."""

    directory: Path = option(
        ..., "New or empty folder for the run, which all workers reach.", argument="DIR", recorded=False
    )
    checkpoints: tuple[str, ...] = option(
        ...,
        "Model weights, as riskaudit scan takes them; several are audited alike.",
        argument="CHECKPOINT...",
        recorded=False,
        check=find_model,
    )
    shard: Count = option(
        256, "Samples that are finished together, at most; an upload stays whole.", SOLVERS, recorded=False
    )
    threads: Count = option(
        1, "Threads of every worker; sums are rounded as they are split among them.", SOLVERS, recorded=False
    )
    heartbeat: Positive = option(
        5.0,
        "Seconds between a worker's signs of life; without any for 12 times as long it is given up.",
        SOLVERS,
        recorded=False,
    )
    show_samples: bool = option(
        False, "Put the private images into the results; the folder is for its owner alone then.", OUTPUT
    )
    config: Path | None = option(None, _CONFIG, INPUTS, callback=read_config, recorded=False)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class WorkOptions(ConsoleOptions):
    """Who works on what."""

    workers: Count | None = option(
        None,
        "How many workers (default: 1; with Ray what the cluster has room for); results don't depend on it.",
        SOLVERS,
    )
    engine: Literal["local", "ray", "slurm"] = option(
        "local", "Where workers run: local (processes of this machine), ray or slurm (jobs of an array).", SOLVERS
    )
    shard: int | None = option(None, "Work on the one shard of this number, as jobs of an array do.", SOLVERS)
    address: str | None = option(None, "Of the Ray cluster (default: RAY_ADDRESS, else one is started here).", SOLVERS)
    job: tuple[str, ...] = option(
        (),
        "Parameter of SLURM jobs as submitit names it: timeout_min=600, slurm_partition=gpu; repeatable.",
        SOLVERS,
    )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MergeOptions(ConsoleOptions):
    """What of a run is merged."""

    partial: bool = option(
        False, "Merge a run that isn't complete: the rest counts as not assessed, and no policy allows it.", OUTPUT
    )
    config: Path | None = option(None, _CONFIG, INPUTS, callback=read_config, recorded=False)


@run.command("create")
@command
def create(
    ctx: typer.Context,
    creation: CreateOptions,
    source: SourceOptions,
    settings: AuditSettings,
    console: ConsoleOptions,
) -> int:
    """Read checkpoints and data, decide how they are audited, and write that down in a new folder.

    Exit codes: 0 created, 2 could not.
    """
    # Refused now rather than when everything is finished.
    limits_of(settings, None, creation.config)
    from riskaudit.runs.run import Run

    made = Run.create(
        creation.directory,
        creation.checkpoints,
        source.data,
        settings,
        shard=creation.shard,
        threads=creation.threads,
        heartbeat=creation.heartbeat,
        show_samples=creation.show_samples,
        commands=[recorded_command(ctx, scanned=checkpoint) for checkpoint in creation.checkpoints],
        **{name: value for name, value in asdict(source).items() if name != "data"},
    )
    if not console.quiet:
        units = made.manifest.units
        size = sum(unit.size for unit in units)
        typer.echo(f"{count(len(units), 'shard')}, {count(size, 'sample')}; riskaudit run work does them")
        typer.echo(f"wrote {creation.directory}")
    return 0


@run.command("work")
@command
def work(directory: FolderArgument, options: WorkOptions) -> int:
    """Work on a run until all its shards are finished, those that others work on included.

    A rerun resumes; any number of these commands, on any machines that reach the folder and the inputs, share the
    work. Exit codes: 0 finished, 2 could not, 130 interrupted (finished shards are kept).
    """
    from riskaudit.runs.run import Run

    opened = Run(directory)
    try:
        with progress(options.quiet) as update:
            opened.execute(
                options.engine,
                workers=options.workers,
                shard=options.shard,
                address=options.address,
                job=_parameters(options.job),
                progress=update,
            )
    except KeyboardInterrupt:
        typer.echo(f"interrupted: finished shards are kept; riskaudit run work {directory} goes on", err=True)
        return EXIT_INTERRUPTED
    return 0


@run.command("status")
@command
def status(
    directory: FolderArgument,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every shard.")] = False,
) -> int:
    """How far a run is. Exit codes: 0 complete, 1 incomplete, 2 not a run."""
    from riskaudit.runs.run import Run

    found = Run(directory).status()
    if as_json:
        typer.echo(found.to_json(), nl=False)
        return 0 if found.complete else EXIT_INCOMPLETE
    states = Counter(shard.state for shard in found.shards)
    typer.echo(
        f"{states['finished']} of {count(len(found.shards), 'shard')} finished, {found.finished_samples} of "
        f"{count(found.num_samples, 'sample')}"
    )
    for shard in found.shards:
        who = f"shard {shard.shard} by {shard.worker or 'an unknown worker'}, since {shard.since or 'an unknown time'}"
        if shard.state in ("leased", "stale"):
            typer.echo(f"{shard.state}: {who}, last sign of life {number(shard.silent or 0.0)} s ago")
        elif shard.state == "failed":
            typer.echo(f"failed: shard {shard.shard} in {shard.attempts} attempts, {shard.reason or 'unknown why'}")
    if found.failed_samples:
        typer.echo(
            f"without numbers: {count(found.failed_samples, 'sample')}, each with its reason in the merged audit"
        )
    if states["left"]:
        typer.echo(f"left: {count(states['left'], 'shard')}")
    if found.seconds_left:
        typer.echo(f"about {number(found.seconds_left)} s left at the pace so far")
    return 0 if found.complete else EXIT_INCOMPLETE


def merge(directory: FolderArgument, options: MergeOptions, report: ReportOptions) -> int:
    """Make an audit of every checkpoint from a run's shards: the same bytes whoever worked on them.

    Of several checkpoints each has a folder of its own in that of the results (default: DIR/merged). Exit codes: as
    scan.
    """
    from riskaudit.runs.run import Run

    opened = Run(directory)
    manifest, settings = opened.manifest, opened.manifest.audit_settings()
    names = _folder_names([checkpoint.name for checkpoint in manifest.checkpoints])
    inputs = input_paths(
        [[checkpoint.path for checkpoint in manifest.checkpoints], manifest.source["data"], list(manifest.files)]
    )
    out = report.out or directory / "merged"
    deliveries = [
        Delivery(
            out / name if len(names) > 1 else out,
            inputs,
            settings,
            report,
            options.config,
            private=manifest.private,
            quiet=options.quiet,
        )
        for name in names
    ]
    from riskaudit.results import columns

    if max(checkpoint.num_samples for checkpoint in manifest.checkpoints) > columns.MANY:
        columns.check_parquet()
    codes = []
    results = opened.merged(partial=options.partial, settings=deliveries[0].settings)
    for name, delivery, merged in zip(names, deliveries, results, strict=True):
        if len(names) > 1 and not options.quiet:
            typer.echo(f"{name}:")
        codes.append(delivery.deliver(merged, in_table=len(merged.samples) > columns.MANY))
    return max(codes)


run.command("merge")(command(merge, omit=("show_samples",)))


def _parameters(given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` by name.

    Raises:
        SettingsError: one isn't of that form.
    """
    for each in given:
        if not each.partition("=")[0].isidentifier() or "=" not in each:
            raise SettingsError(f"expected `job` as NAME=VALUE, found {each!r}")
    return {name: value for name, _, value in (each.partition("=") for each in given)}


def _folder_names(names: list[str]) -> list[str]:
    """One per checkpoint, those of equal names numbered."""
    total, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if total[name] == 1 else f"{name}-{seen[name]}")
    return found
