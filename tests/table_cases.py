"""Tables of words, numbers and missing cells: scikit-learn's breast cancer, some of its columns put into bins."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from riskaudit.inputs import Samples, infer_encoding, load_samples
from riskaudit.tables import save_encoding

# Columns of numbers; then those of words, of three and of five bins.
NUMBERS = ("mean radius", "mean texture", "mean smoothness", "worst area")
WORDS = {"mean concavity": 3, "mean symmetry": 5}
NAMES = ("tiny", "small", "medium", "large", "huge")
ROWS = 60


@lru_cache
def rows_of(count: int = ROWS, missing: bool = True) -> list[list[str]]:
    """The header and the first rows: numbers, bins as words, a boolean, and the label in words."""
    data = load_breast_cancer()
    names = list(data.feature_names)
    columns = {name: [f"{value:.6g}" for value in data.data[:, names.index(name)]] for name in NUMBERS}
    for name, bins in WORDS.items():
        values = data.data[:, names.index(name)]
        edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
        columns[name] = [NAMES[place] for place in np.digitize(values, edges)]
    area = data.data[:, names.index("mean area")]
    columns["is large"] = ["true" if value > np.median(area) else "false" for value in area]
    if missing:
        for row in range(3, len(area), 11):
            columns["mean texture"][row] = "?"
            columns["mean concavity"][row] = ""
    columns["diagnosis"] = [("malignant", "benign")[target] for target in data.target]
    return [list(columns), *(list(row) for row in list(zip(*columns.values(), strict=True))[:count])]


def write_table(path: Path, rows: list[list[str]] | None = None) -> Path:
    """A CSV; the first of `rows_of` unless others are given."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows_of() if rows is None else rows)
    return path


def write_encoding(path: Path, table: Path) -> Path:
    """The encoding that is inferred from a table."""
    save_encoding(infer_encoding(table), path)
    return path


def samples_of(folder: Path, count: int = ROWS) -> Samples:
    """The table by its inferred encoding: 4 numbers, 4 + 5 inputs of words, 1 of true and false."""
    table = write_table(folder / "cancer.csv")
    return load_samples(table, encoding=write_encoding(folder / "cancer.toml", table), limit=count)


def network(width: int, hidden: int = 16, seed: int = 0, act: type[nn.Module] = nn.Tanh) -> nn.Module:
    """An MLP of two hidden layers, float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(width, hidden), act(), nn.Linear(hidden, hidden), act(), nn.Linear(hidden, 2)]
        return nn.Sequential(*layers).double()
