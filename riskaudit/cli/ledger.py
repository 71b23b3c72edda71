"""``riskaudit ledger`` and ``riskaudit log``: what the guard has written down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riskaudit.cli.options import command
from riskaudit.errors import GuardError
from riskaudit.files import check_output_file, is_json_with, write_file
from riskaudit.formatting import count
from riskaudit.guard.keys import VARIABLE, KeyFolder
from riskaudit.guard.log import AuditLog

if TYPE_CHECKING:
    from riskaudit.guard.ledger import Ledger

EXIT_FLAWED = 1

ledger = typer.Typer(
    help="What has left about each sample over all rounds.", no_args_is_help=True, pretty_exceptions_enable=False
)
log = typer.Typer(help="The guard's log of decisions.", no_args_is_help=True, pretty_exceptions_enable=False)

LedgerArgument = Annotated[Path, typer.Argument(metavar="LEDGER", help="File that a guard counts in.")]
KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", envvar=VARIABLE, help="Folder of the key and the counters (default: the user's)."),
]
LogArgument = Annotated[Path, typer.Argument(metavar="LOG", help="File that a guard writes its decisions to.")]


@ledger.command("show")
@command
def show(
    file: LedgerArgument,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Samples to show, the most exposed first.")] = 20,
) -> int:
    """Show the samples of which most has left. Exit codes: 0 shown, 2 not a ledger."""
    guarded = _existing(file)
    accounts = list(guarded.every_account())
    typer.echo(f"{count(guarded.num_rounds, 'round')}, {count(len(accounts), 'sample')}")
    if accounts:
        typer.echo(f"{'sample':<18}{'rounds':>8}{'revealed at most':>18}{'RMSE at least':>15}")
    for identifier, account in accounts[:limit]:
        typer.echo(f"{identifier:<18}{account.rounds:>8}{account.revealed:>18.4f}{account.rmse:>15.4g}")
    if len(accounts) > limit:
        typer.echo(f"and {len(accounts) - limit} more; --limit shows them")
    return 0


@ledger.command("verify")
@command
def verify_ledger(
    file: LedgerArgument,
    log_file: Annotated[
        Path | None, typer.Option("--log", help="The guard's log, which must tell of the same rounds.")
    ] = None,
    keys: KeysOption = None,
) -> int:
    """Check that the file is as the guard left it. Exit codes: 0 whole, 1 flawed, 2 not a ledger."""
    guarded = _existing(file, keys)
    problems = guarded.problems(None if log_file is None else AuditLog(log_file, keys=keys))
    return _report(file, problems, count(guarded.num_rounds, "round"))


@ledger.command("reset")
@command
def reset(
    file: LedgerArgument,
    log_file: Annotated[Path | None, typer.Option("--log", help="The guard's log, which will say so.")] = None,
    keys: KeysOption = None,
) -> int:
    """Start over: what has left so far is no longer counted. Exit codes: 0 done, 2 not.

    The file that is there keeps its content under another name.
    """
    from riskaudit.guard.ledger.tables import ENDINGS

    notice = f"the ledger {file.name} was reset by hand: it starts at zero, whatever has left before"
    if log_file is not None:
        # Before the ledger, so that no reset goes without a trace.
        AuditLog(log_file, keys=keys).append({"decision": "reset", "reasons": [notice]})
    aside = KeyFolder(keys).put_aside(file, ENDINGS)
    typer.echo(notice if aside is None else f"{notice}; the earlier one is {aside}")
    return 0


@ledger.command("export")
@command
def export(
    file: LedgerArgument,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file (default: standard output).")] = None,
) -> int:
    """Write rounds and samples as JSON, without the directions of the sketch. Exit codes: 0 written, 2 not."""
    text = _existing(file).export()
    if out is None:
        typer.echo(text, nl=False)
    else:
        check_output_file(out, [file], lambda path: is_json_with(path, ("schema", "rounds", "samples")))
        write_file(out, text.encode(), private=True)
    return 0


@log.command("verify")
@command
def verify_log(
    file: LogArgument,
    head: Annotated[
        str | None, typer.Option("--head", help="A hash noted earlier, which shows lines that were cut off the end.")
    ] = None,
    ledger_file: Annotated[
        Path | None, typer.Option("--ledger", help="The guard's ledger, which must have the rounds that are told of.")
    ] = None,
    keys: KeysOption = None,
) -> int:
    """Check that the file is as the guard left it. Exit codes: 0 whole, 1 tampered with, 2 can't be read."""
    decisions = AuditLog(file, keys=keys)
    problems = decisions.problems(head)
    if ledger_file is not None:
        problems += _existing(ledger_file, keys).problems(decisions)
    return _report(file, problems, f"{sum(1 for _ in decisions.entries())} lines, last hash {decisions.head}")


@log.command("reset")
@command
def reset_log(file: LogArgument, keys: KeysOption = None) -> int:
    """Start over with a first line that says so. Exit codes: 0 done, 2 not.

    The file that is there keeps its content under another name.
    """
    notice = "the log was reset by hand"
    aside = AuditLog(file, keys=keys).reset(notice if not file.exists() else f"{notice}: it had lines before")
    typer.echo(notice if aside is None else f"{notice}; the earlier one is {aside}")
    return 0


def _existing(file: Path, keys: Path | None = None) -> Ledger:
    if not file.is_file():
        raise GuardError(f"expected a ledger at {file}, found no file")
    from riskaudit.guard.ledger import Ledger

    return Ledger(file, read_only=True, keys=keys)


def _report(file: Path, problems: list[str], size: str) -> int:
    for problem in problems:
        typer.echo(f"{file}: {problem}")
    if not problems:
        typer.echo(f"{file} is whole: {size}")
    return EXIT_FLAWED if problems else 0
