"""The checkpoints of a run, files or folders of ``save_pretrained``, and their order.

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
from riskaudit.inputs.checkpoints import checkpoint_sha256, is_training_state
from riskaudit.inputs.exported.archive import is_exported
from riskaudit.inputs.huggingface.folder import is_model_folder
from riskaudit.inputs.readers.archives import checked_members, is_zip
from riskaudit.inputs.readers.torch_files import read_torch_file, starts_like_pickle
from riskaudit.inputs.text import clean, natural_key

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pt2")
STEP_ENTRIES = ("step", "global_step", "epoch")
StepSource = Literal["file name", "checkpoint", "position"]


@dataclass(frozen=True)
class Snapshot:
    """One checkpoint of a run."""

    path: Path
    step: int

    @cached_property
    def sha256(self) -> str | None:
        """Of the file or folder; None where it can't be read."""
        try:
            return checkpoint_sha256(self.path)
        except (OSError, CheckpointError):
            return None


def checkpoint_files(paths: Sequence[str | Path]) -> list[Path]:
    """The checkpoints named, a folder that is none itself standing for those in it in natural order.

    Raises:
        CheckpointError: a folder without any, or nothing named.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        try:
            entries = [entry for entry in path.iterdir() if is_model_folder(entry)]
            # What training code writes beside its folders of whole models are the last one's or no weights.
            if not entries and not is_model_folder(path):
                entries = [entry for entry in path.iterdir() if _is_checkpoint_file(entry)]
        except OSError as cause:
            raise CheckpointError(f"can't read the folder {clean(path)} ({clean(cause.strerror or cause)})") from cause
        own = [path] if is_model_folder(path) else []
        if not entries and not own:
            accepted = f"{', '.join(SUFFIXES)}, or folders of save_pretrained"
            raise CheckpointError(f"expected checkpoints ({accepted}) in {clean(path)}, found none")
        # What lies in the run's own folder was saved at its end.
        files += [*sorted(entries, key=lambda entry: natural_key(entry.name)), *own]
    if not files:
        raise CheckpointError("expected at least one checkpoint file or a folder of them, found none")
    return list(dict.fromkeys(files))


def _is_checkpoint_file(path: Path) -> bool:
    hidden = path.name.startswith(".") or is_training_state(path.name)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


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
    numbers = re.findall(r"\d+", path.name if path.is_dir() else path.stem)
    return int(numbers[-1]) if numbers and len(numbers[-1]) < 18 else None


def _step_in_file(path: Path) -> int | None:
    """A step that a training loop stored beside the weights; None where there is none or the file is broken."""
    try:
        if path.is_dir():
            return None
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
