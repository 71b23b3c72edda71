"""What a command line reads, and the command that reproduces a result, without the folders of its files."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from riskaudit.cli.options import GIVEN, flag_of
from riskaudit.files import names_code
from riskaudit.settings import Given


def recorded_command(ctx: typer.Context, scanned: str | None = None) -> str:
    """The command that reproduces this audit, without the folders of its files.

    Args:
        ctx: of the command that was given.
        scanned: the checkpoint of which a scan with the same options gives the same result; None for the command as it
            was given.
    """
    # Of a study of several checkpoints, the last one is the audited one.
    subjects = [ctx.params[name] for name in ("checkpoint", "update") if name in ctx.params]
    names = [*_command_names(ctx), *map(_file_name, [*(ctx.params.get("earlier") or ()), *subjects])]
    words = ["riskaudit", *(names if scanned is None else ["scan", _file_name(scanned)])]
    words += ["--data", _file_name(ctx.params["data"])] if "data" in ctx.params else []
    given: dict[str, Given] = ctx.meta[GIVEN]
    for name, how in given.items():
        source, value = ctx.get_parameter_source(name), ctx.params[name]
        if not how.get("recorded", True) or source is None or source.name == "DEFAULT" or value in (None, False):
            continue
        if value is True:
            words.append(flag_of(name, how))
            continue
        if name == "classes" and not ctx.params.get("plain_ids") and not Path(value).is_file():
            # The names may be people's, as those of the class folders.
            value = "NAMES"
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [flag_of(name, how), _file_name(str(each)) if how.get("file") else str(each)]
    return shlex.join(words)


def _command_names(ctx: Any) -> list[str]:
    """The command's name after those of the groups that it belongs to."""
    return [] if ctx.parent is None else [*_command_names(ctx.parent), str(ctx.info_name)]


def _file_name(path: str) -> str:
    return Path(path).name or "."


def input_paths(values: Iterable[object]) -> list[Path]:
    """The files and folders among the values of options; of ``file.py:name`` the file.

    A value that only happens to be the name of a file counts as well: an output there would be no better.
    """
    paths: list[Path] = []
    for value in values:
        for each in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(each, str | Path) or not str(each):
                continue
            path = Path(str(each).rpartition(":")[0] if names_code(str(each)) else each)
            if _exists(path):
                paths.append(path)
    return paths


def inputs_of(ctx: typer.Context) -> list[Path]:
    """What the command line of ``ctx`` reads. Of a folder of checkpoints only the files are read."""
    given: dict[str, Given] = ctx.meta[GIVEN]
    inputs: list[Path] = []
    for name, value in ctx.params.items():
        if given.get(name, {}).get("written"):
            continue
        paths = input_paths([value])
        if name in ("checkpoint", "earlier"):
            paths = [entry for path in paths for entry in (path.iterdir() if path.is_dir() else [path])]
        inputs += paths
    return inputs


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        # Too long for a name, or a zero byte: no file.
        return False
