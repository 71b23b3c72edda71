"""The command that reproduces a result, without the folders of its files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import typer

# Options that don't change what is computed, or name places on this machine.
NOT_RECORDED = {
    "checkpoint", "data", "out", "quiet", "debug", "config", "baseline", "format", "policy", "resume", "earlier"
}  # fmt: skip
# Options that may name files, of which the folder is left out.
FILES = {"arch", "classes", "loss", "prior", "calibration", "group_by", "add_to"}


def recorded_command(ctx: typer.Context, checkpoint: str, data: str) -> str:
    """The command that reproduces this audit, without the folders of its files."""
    # Of a study of several checkpoints, those in front of the last.
    checkpoints = [_file_name(path) for path in (*(ctx.params.get("earlier") or ()), checkpoint)]
    words = ["riskaudit", *_command_names(ctx), *checkpoints, "--data", _file_name(data)]
    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        value: Any = ctx.params.get(name)
        if name in NOT_RECORDED or source is None or source.name == "DEFAULT" or value in (None, False):
            continue
        option = next(option for option in parameter.opts if option.startswith("--"))
        if value is True:
            words.append(option)
            continue
        if name == "classes" and not ctx.params.get("plain_ids") and not Path(value).is_file():
            # The names may be people's, as those of the class folders.
            value = "NAMES"
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [option, _file_name(str(each)) if name in FILES else str(each)]
    return shlex.join(words)


def _command_names(ctx: Any) -> list[str]:
    """The command's name after those of the groups that it belongs to."""
    return [] if ctx.parent is None else [*_command_names(ctx.parent), str(ctx.info_name)]


def _file_name(path: str) -> str:
    """A path, or the path in ``file.py:name``, without its folder."""
    return Path(path).name or "."
