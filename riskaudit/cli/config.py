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

FILE_NAMES = ("riskaudit.toml", "pyproject.toml")
# Which files to audit belongs on the command line, and a file can't name another one.
NOT_CONFIGURABLE = {"config", "checkpoint", "help"}


def _table(path: Path) -> dict[str, Any] | None:
    """The project's table in a configuration file; None where pyproject.toml has none."""
    content = read_toml(path)
    tool = content.get("tool", {})
    if isinstance(tool, dict) and "riskaudit" in tool:
        table = tool["riskaudit"]
    else:
        table = None if path.name == "pyproject.toml" else content
    if table is not None and not isinstance(table, dict):
        raise SettingsError(f"expected a table for riskaudit in {path}, found {table!r}")
    return table


def _find(given: Path | None) -> tuple[Path, dict[str, Any]] | None:
    if given is not None:
        table = _table(given)
        if table is None:
            raise SettingsError(f"expected a [tool.riskaudit] table in {given}, found none")
        return given, table
    for path in filter(Path.is_file, map(Path, FILE_NAMES)):
        table = _table(path)
        if table is not None:
            return path, table
    return None


def read_config(ctx: typer.Context, given: Path | None) -> Path | None:
    """Option callback: make the file's values the command's defaults; returns the file used.

    Raises:
        SettingsError: a file that can't be read, or a key that is no option of this command.
    """
    file = None if ctx.resilient_parsing else _find(given)
    if file is None:
        return given
    path, table = file
    parameters = _configurable(ctx.command)
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if _is_policy(key, value) or (name not in parameters and name in _configurable_elsewhere(ctx)):
            continue
        if name not in parameters:
            raise SettingsError(f"expected an option of riskaudit {ctx.info_name} in {path}, found {key!r}")
        default = _as_given(value, repeatable=getattr(parameters[name], "multiple", False))
        if given is None:
            _refuse_code(default, key, path)
        defaults[parameters[name].name] = default
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def _configurable(command: Any) -> dict[str, Any]:
    return {
        option.removeprefix("--").replace("-", "_"): parameter
        for parameter in command.params
        if parameter.name not in NOT_CONFIGURABLE
        for option in parameter.opts
        if option.startswith("--")
    }


def _configurable_elsewhere(ctx: Any) -> set[str]:
    group = ctx.parent.command if ctx.parent is not None else ctx.command
    names = group.list_commands(ctx.parent) if hasattr(group, "list_commands") else []
    commands = [group.get_command(ctx.parent, name) for name in names]
    return {name for command in commands for name in _configurable(command)}


def _is_policy(key: str, value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    from riskaudit.policy import POLICY_TABLE

    return key == POLICY_TABLE


def _refuse_code(value: Any, key: str, path: Path) -> None:
    """A file that merely lies in the current folder, which anyone may have written, names no code that would be run."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str) and names_code(each):
            raise SettingsError(
                f"{key} in {path} of the current folder names code, which only the command line may; give --{key} "
                f"there, or name the file with --config {path}"
            )


def _as_given(value: Any, *, repeatable: bool) -> Any:
    """A value as the command line would give it.

    One of a repeatable option may stand alone; numbers that are separated by commas there may be an array.
    """
    if isinstance(value, list):
        return value if repeatable else ",".join(map(str, value))
    return [value] if repeatable else value
