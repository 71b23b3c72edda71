"""The application: its commands, and what becomes of errors."""

from __future__ import annotations

import copy
import os
import re
import sys
import traceback
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Annotated, Any

import typer
from typing_extensions import override

from riskaudit.errors import RiskauditError
from riskaudit.formatting import is_plainly_written
from riskaudit.memory import keep_freed_memory
from riskaudit.version import __version__

EXIT_COULD_NOT_AUDIT = 2
EXIT_INTERRUPTED = 130

# BadParameter > UsageError > ClickException. Typer carries click inside itself in newer versions, so the
# class has no import path that holds for all of them.
USAGE_ERROR: type[Exception] = typer.BadParameter.mro()[2]

# Where each command is defined, in the order of the help.
COMMANDS = {
    "scan": "riskaudit.cli.scan:scan",
    "verify": "riskaudit.cli.verify:verify",
    "inspect": "riskaudit.cli.inspect:inspect",
    "attest": "riskaudit.cli.attest:attest",
    "calibrate": "riskaudit.cli.calibrate:calibrate",
    "guard-check": "riskaudit.cli.guard_check:guard_check",
    "run": "riskaudit.cli.run:run",
    "report": "riskaudit.cli.report:report",
    "demo": "riskaudit.cli.demo:demo",
    "docs": "riskaudit.cli.docs:docs",
    "list": "riskaudit.cli.listing:list_names",
    "prior": "riskaudit.cli.prior:prior",
    "encoding": "riskaudit.cli.encoding:encoding",
    "ats": "riskaudit.cli.ats:ats",
    "study": "riskaudit.cli.study:study",
    "ledger": "riskaudit.cli.ledger:ledger",
    "log": "riskaudit.cli.ledger:log",
}


@cache
def _built(name: str) -> Any:
    module, _, attribute = COMMANDS[name].partition(":")
    function = getattr(import_module(module), attribute)
    if isinstance(function, typer.Typer):
        command = typer.main.get_group(function)
    else:
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name)(function)
        command = typer.main.get_command(single)  # type: ignore[assignment]
    command.name = name
    _require_plain_numbers(command)
    return command


def _require_plain_numbers(command: Any) -> None:
    """Let a command, and those below it, refuse numbers such as 0_1, which Python reads as 1."""
    for part in getattr(command, "commands", {}).values():
        _require_plain_numbers(part)
    for parameter in command.params:
        if parameter.type.name.startswith(("float", "integer")):
            # A copy, since one type serves all options.
            parameter.type = copy.copy(parameter.type)
            parameter.type.convert = partial(_convert_plain, parameter.type.convert)


def _convert_plain(convert: Callable[..., Any], value: Any, parameter: Any, ctx: Any) -> Any:
    if isinstance(value, str) and not is_plainly_written(value):
        message = f"{value!r} is not a number; write it with the digits 0 to 9 and a point"
        raise typer.BadParameter(message, ctx=ctx, param=parameter)
    return convert(value, parameter, ctx)


def load_commands() -> None:
    """Import all of them, so that `riskaudit.cli.options.EVERY_FLAG` has their options."""
    for place in COMMANDS.values():
        import_module(place.partition(":")[0])


class _LazyGroup(typer.core.TyperGroup):
    """Imports a command and declares its options when it is asked for, which takes longer than the rest."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: Any = dict.fromkeys(COMMANDS)

    @override
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _built(cmd_name) if cmd_name in COMMANDS else None


app = typer.Typer(
    name="riskaudit",
    cls=_LazyGroup,
    help="Audit what a gradient gives away, before it is sent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"riskaudit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; every error becomes one sentence on stderr."""
    try:
        outcome = app(args=arguments, standalone_mode=False)
    except typer.Exit as stop:
        outcome = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        outcome = EXIT_INTERRUPTED
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        typer.echo(f"riskaudit: {_one_line(_sentence(error))}", err=True)
        return EXIT_COULD_NOT_AUDIT
    # Newer versions of typer return this code instead of raising anything.
    if outcome == EXIT_INTERRUPTED:
        typer.echo("riskaudit: interrupted; no result was written", err=True)
    return outcome if isinstance(outcome, int) else 0


def _sentence(error: Exception) -> str:
    """What to tell the user. A bug must look like neither "exceeded" nor a page of traceback."""
    if isinstance(error, RiskauditError):
        return str(error)
    if isinstance(error, USAGE_ERROR):
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        several = "; give the option once for each" if re.search(r"'\w+(,\w+)+' is not one of", message) else ""
        return f"{message.rstrip('.') or 'expected a command'}{several} (see riskaudit --help)"
    return f"unexpected {type(error).__name__}: {str(error) or 'no message'}; --debug shows where"


def _one_line(text: str) -> str:
    """Without line breaks and terminal codes, which file names and options can carry."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def main() -> None:
    """The ``riskaudit`` command."""
    # Threads that spin while they wait make a scan tens of times slower on a machine that trains at the
    # same time (measured: 18 s instead of 0.4 s for one product). Read when torch is loaded, hence here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    sys.exit(run(sys.argv[1:]))
