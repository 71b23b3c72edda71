"""Options from TOML files. The command line wins over the file.

A file found in the current folder sets numbers and paths; only one that ``--config`` names may name code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from riskaudit.errors import SettingsError
from riskaudit.files import names_code, read_toml
from riskaudit.policy import POLICY_TABLE

FILE_NAMES = ("riskaudit.toml", "pyproject.toml")
# Which files to audit belongs on the command line, and a file can't name another one.
NOT_CONFIGURABLE = {"config", "checkpoint", "help"}


def _table(path: Path) -> dict[str, Any] | None:
    """The project's table in a configuration file; None where pyproject.toml has none."""
    content = read_toml(path)
    if path.name == "pyproject.toml":
        tool = content.get("tool", {})
        table = tool.get("riskaudit") if isinstance(tool, dict) else None
    else:
        tool = content.get("tool", {})
        table = tool["riskaudit"] if isinstance(tool, dict) and "riskaudit" in tool else content
    if table is not None and not isinstance(table, dict):
        raise SettingsError(f"expected a table for riskaudit in {path}, found {table!r}")
    return table


def _find(given: Path | None) -> tuple[Path, dict[str, Any]] | None:
    if given is not None:
        table = _table(given)
        if table is None:
            raise SettingsError(f"expected a [tool.riskaudit] table in {given}, found none")
        return given, table
    for name in FILE_NAMES:
        path = Path(name)
        if path.is_file():
            table = _table(path)
            if table is not None:
                return path, table
    return None


def read_config(ctx: typer.Context, given: Path | None) -> Path | None:
    """Option callback: make the file's values the command's defaults; returns the file used.

    Raises:
        SettingsError: a file that can't be read, or a key that is no option of this command.
    """
    if ctx.resilient_parsing:
        return given
    found = _find(given)
    if found is None:
        return None
    path, table = found
    # A parameter is configured by the name of its long option, with either kind of dash.
    parameters = {
        option.lstrip("-").replace("-", "_"): parameter
        for parameter in ctx.command.params
        if parameter.name not in NOT_CONFIGURABLE
        for option in parameter.opts
        if option.startswith("--")
    }
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        if key == POLICY_TABLE and isinstance(value, Mapping):
            continue
        parameter = parameters.get(key.replace("-", "_"))
        if parameter is None and key.replace("-", "_") in _options_elsewhere(ctx):
            continue
        if parameter is None or parameter.name is None:
            raise SettingsError(f"expected an option of riskaudit {ctx.info_name} in {path}, found {key!r}")
        chosen = _as_given(value, repeatable=getattr(parameter, "multiple", False))
        if given is None:
            _refuse_code(chosen, key, path)
        defaults[parameter.name] = chosen
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def _refuse_code(value: Any, key: str, path: Path) -> None:
    """A file that merely lies in the current folder, which may be anybody's, names no code that would be run.

    Raises:
        SettingsError: it does.
    """
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str) and names_code(each):
            raise SettingsError(
                f"{key} in {path} of the current folder names code, which only the command line may; give --{key} "
                f"there, or name the file with --config {path}"
            )


def _options_elsewhere(ctx: typer.Context) -> set[str]:
    """Options of the other commands, which share the file."""
    group = ctx.parent.command if ctx.parent is not None else None
    commands = getattr(group, "commands", {}).values()
    return {
        option.lstrip("-").replace("-", "_")
        for command in commands
        for parameter in command.params
        if parameter.name not in NOT_CONFIGURABLE
        for option in parameter.opts
    }


def _as_given(value: Any, *, repeatable: bool) -> Any:
    """A value as the command line would give it.

    One of a repeatable option may stand alone; numbers that are separated by commas there may be an array.
    """
    if isinstance(value, list):
        return value if repeatable else ",".join(map(str, value))
    return [value] if repeatable else value
