"""The checkpoint files of a run, and their order.

The checkpoints of a run are ordered by the step in their names, else by the one stored in them, else as given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import Tensor

from riskaudit.errors import CheckpointError, RiskauditError
from riskaudit.files import sha256_of_file
from riskaudit.inputs.exported.archive import is_exported
from riskaudit.inputs.readers.archives import checked_members, is_zip
from riskaudit.inputs.readers.torch_files import read_torch_file, starts_like_pickle
from riskaudit.inputs.text import clean

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pt2")
STEP_ENTRIES = ("step", "global_step", "epoch")
StepSource = Literal["file name", "checkpoint", "position"]


@dataclass(frozen=True)
class Snapshot:
    """One checkpoint file of a run."""

    path: Path
    step: int

    @cached_property
    def sha256(self) -> str | None:
        """Of the file; None where it can't be read."""
        try:
            return sha256_of_file(self.path)
        except OSError:
            return None


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts names with numbers as a reader would: step 9 before step 10."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def checkpoint_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, a folder standing for the checkpoint files in it in natural order.

    Raises:
        CheckpointError: a folder without any, or nothing named.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        try:
            entries = [entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file()]
        except OSError as cause:
            raise CheckpointError(f"can't read the folder {clean(path)} ({clean(cause.strerror or cause)})") from cause
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        if not entries:
            raise CheckpointError(f"expected checkpoints ({', '.join(SUFFIXES)}) in {clean(path)}, found none")
        files += sorted(entries, key=lambda entry: natural_key(entry.name))
    if not files:
        raise CheckpointError("expected at least one checkpoint file or a folder of them, found none")
    return list(dict.fromkeys(files))


def order_of(files: Sequence[Path]) -> tuple[list[Snapshot], StepSource]:
    """The files in the order of training.

    The step is the last number in a file's name; where some name has none or two have the same, the files' own
    entries (`STEP_ENTRIES`); else the position among the files as they were given.
    """
    named = [_step_in_name(path) for path in files]
    if len(set(named) - {None}) == len(files):
        return _sorted(files, named), "file name"
    stored = [_step_in_file(path) for path in files]
    if len(set(stored) - {None}) == len(files):
        return _sorted(files, stored), "checkpoint"
    return [Snapshot(path, position) for position, path in enumerate(files)], "position"


def _sorted(files: Sequence[Path], steps: Sequence[int | None]) -> list[Snapshot]:
    snapshots = [Snapshot(path, step) for path, step in zip(files, steps, strict=True) if step is not None]
    return sorted(snapshots, key=lambda snapshot: snapshot.step)


def _step_in_name(path: Path) -> int | None:
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers and len(numbers[-1]) < 18 else None


def _step_in_file(path: Path) -> int | None:
    """A step that a training loop stored beside the weights; None where there is none or the file is broken."""
    try:
        if is_zip(path):
            if is_exported(checked_members(path, CheckpointError, compressed=False)):
                return None
        elif not starts_like_pickle(path):
            return None
        content = read_torch_file(path, CheckpointError)
    except (RiskauditError, OSError, MemoryError):
        return None
    values = [content.get(name) for name in STEP_ENTRIES] if isinstance(content, Mapping) else []
    for value in values:
        number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
            return number
    return None
