"""What a command reads, so that it never writes there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from riskaudit.files import names_code

# Options whose paths are written, or (an audit that is extended in its place) may be.
WRITTEN = {"out", "add_to"}


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
    paths: list[Path] = []
    for name, value in ctx.params.items():
        if name in WRITTEN:
            continue
        found = input_paths([value])
        if name in ("checkpoint", "earlier"):
            found = [entry for path in found for entry in (path.iterdir() if path.is_dir() else [path])]
        paths += found
    return paths


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        # Too long for a name, or a zero byte: no file.
        return False
