"""What several test files of this folder share."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from riskaudit.errors import RiskauditError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 1, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def write_arrays(path: Path, content: dict[str, np.ndarray]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **content)
    else:
        tensors = {key: torch.from_numpy(np.array(value, order="C")) for key, value in content.items()}
        if path.suffix == ".safetensors":
            save_file(tensors, path)
        else:
            torch.save(tensors, path)
    return path


ROWS = [("id", "age", "dose", "label"), ("p1", "30", "0.5", "1"), ("p2", "41", "1.5", "0"), ("p3", "52", "2.5", "1")]


def table(path: Path, rows=ROWS) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(rows)
        return path
    import pyarrow as pa
    from pyarrow import parquet

    columns = {}
    for name, *cells in zip(*rows, strict=True):
        try:
            columns[name] = [int(cell) if str(cell).lstrip("-").isdigit() else float(cell) for cell in cells]
        except ValueError:
            columns[name] = [str(cell) for cell in cells]
    parquet.write_table(pa.table(columns), path)
    return path


class Attack:
    """Pickles to a program that creates the file ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.marker), "w"))


def random_module(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with weights drawn from a generator of its own, in float32."""
    generator = torch.Generator().manual_seed(seed)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) - 0.5)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.add_(1.0)
    return module.eval()


def refusal_of(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, str]:
    """What a function returns, or None with the sentence of its refusal."""
    try:
        return function(*arguments, **options), ""
    except RiskauditError as error:
        check_sentence(error)
        return None, str(error)


def check_sentence(error: RiskauditError) -> None:
    """What every message must be: one line of bounded length."""
    assert str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 400, str(error)
