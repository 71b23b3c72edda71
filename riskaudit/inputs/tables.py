"""Tables: ``.csv`` and ``.parquet`` with numeric features, one label column and maybe an ``id`` column."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riskaudit.errors import SamplesError
from riskaudit.inputs.arrays import MAX_INPUT_BYTES, RawSamples
from riskaudit.inputs.losses import Loss
from riskaudit.inputs.text import clean, listing

LABEL_COLUMNS = ("label", "labels", "y", "target", "targets")
ID_COLUMN = "id"


def split_columns(columns: Sequence[str], name: str) -> tuple[list[int], int, int | None]:
    """Positions of the features, of the label (by name, else the last column) and of the id.

    Raises:
        SamplesError: a column appears twice, or there is no feature.
    """
    lowered = [column.strip().lower() for column in columns]
    if len(set(lowered)) != len(lowered):
        raise SamplesError(f"{name} has two columns of one name; expected {listing(columns)} to be distinct")
    identifier = lowered.index(ID_COLUMN) if ID_COLUMN in lowered else None
    others = [position for position in range(len(columns)) if position != identifier]
    label = next(
        (lowered.index(wanted) for wanted in LABEL_COLUMNS if wanted in lowered), others[-1] if others else None
    )
    features = [position for position in others if position != label]
    if label is None or not features:
        raise SamplesError(f"{name} has the columns {listing(columns)}, expected features and a label")
    return features, label, identifier


def labels_to_targets(labels: Sequence[Any], loss: Loss | None, name: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels as int64 or float64 [N]; words become class numbers in sorted order, with the words as class names.

    Raises:
        SamplesError: a label is missing, or words where the loss wants numbers.
    """
    texts = [str(label).strip() if label is not None else "" for label in labels]
    missing = next((position for position, text in enumerate(texts) if not text), None)
    if missing is not None:
        raise SamplesError(f"sample {missing} in {name} has no label; fill it in or leave out the row")
    try:
        # int64 is as far as class numbers go; anything longer is a name.
        return torch.tensor([int(text) for text in texts], dtype=torch.int64), None
    except (ValueError, OverflowError, RuntimeError):
        pass
    try:
        return torch.tensor([float(text) for text in texts], dtype=torch.float64), None
    except ValueError as cause:
        if loss is not None and loss.kind != "classification":
            word = next(text for text in texts if not _is_number(text))
            raise SamplesError(
                f"label {clean(word, 30)!r} in {name} isn't a number, which {loss.name} needs; convert the labels"
            ) from cause
    classes = sorted(set(texts))
    numbers = {text: number for number, text in enumerate(classes)}
    return torch.tensor([numbers[text] for text in texts]), tuple(clean(text) for text in classes)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_csv(path: Path, limit: int | None, loss: Loss | None) -> RawSamples:
    """Read a comma-separated table, with a header or, if its first row is all numbers, without.

    Raises:
        SamplesError: not text, ragged, no rows, or a feature that isn't a number.
    """
    name = clean(path.name)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error, MemoryError) as cause:
        raise SamplesError(f"{name} isn't a table that can be read ({clean(cause)}); save it as UTF-8 csv") from cause
    headless = bool(rows) and all(_is_number(cell) for cell in rows[0])
    columns = [str(position) for position in range(len(rows[0]))] if headless else (rows[0] if rows else [])
    body = rows if headless else rows[1:]
    if not body:
        raise SamplesError(f"{name} holds no rows; expected a header and at least one sample")
    ragged = next((position for position, row in enumerate(body) if len(row) != len(columns)), None)
    if ragged is not None:
        raise SamplesError(
            f"sample {ragged} in {name} has {len(body[ragged])} cells, expected {len(columns)}; mend that row"
        )
    features, label, identifier = split_columns(columns, name)
    # Words are numbered over the whole table, so that a limit doesn't change the classes.
    targets, class_names = labels_to_targets([row[label] for row in body], loss, name)
    body = body[:limit]
    values = [
        [_number(row[position], columns[position], index, name) for position in features]
        for index, row in enumerate(body)
    ]
    ids = None if identifier is None else [row[identifier] for row in body]
    return RawSamples(torch.tensor(values, dtype=torch.float64), targets[: len(body)], ids, class_names)


def _number(cell: str, column: str, index: int, name: str) -> float:
    try:
        return float(cell)
    except ValueError as cause:
        raise SamplesError(
            f"sample {index} in {name} has {clean(cell, 30)!r} in column {clean(column, 30)}, expected a number; "
            "encode or leave out that column"
        ) from cause


def read_parquet(path: Path, limit: int | None, loss: Loss | None) -> RawSamples:
    """Read a parquet table; pyarrow is needed for it.

    Raises:
        SamplesError: pyarrow isn't installed, the file is damaged, or a feature isn't a number.
    """
    name = clean(path.name)
    try:
        from pyarrow import parquet
    except ImportError as cause:
        raise SamplesError(f'{name} needs pyarrow; run pip install "riskaudit[parquet]"') from cause
    try:
        with parquet.ParquetFile(path) as file:
            return _read_parquet_columns(file, limit, loss, name)
    except SamplesError:
        raise
    except Exception as cause:
        # Arrow raises its own errors, OSError and ValueError for damage of different kinds.
        raise SamplesError(f"{name} isn't a parquet table that can be read ({clean(cause)}); save it again") from cause


def _read_parquet_columns(file: Any, limit: int | None, loss: Loss | None, name: str) -> RawSamples:
    columns = list(file.schema_arrow.names)
    num_rows = file.metadata.num_rows
    if num_rows < 1:
        raise SamplesError(f"{name} holds no rows; expected at least one sample")
    taken = num_rows if limit is None else min(limit, num_rows)
    features, label, identifier = split_columns(columns, name)
    if taken * len(features) * 8 > MAX_INPUT_BYTES:
        raise SamplesError(f"{name} holds {taken} rows of {len(features)} features, too many; use --limit")
    for position in features:
        kind = str(file.schema_arrow.field(position).type)
        if not kind.startswith(("int", "uint", "float", "double", "halffloat", "bool")):
            raise SamplesError(
                f"column {clean(columns[position], 30)} in {name} is of type {clean(kind, 30)}, expected numbers; "
                "encode or leave out that column"
            )
    labels = file.read(columns=[columns[label]]).column(0).to_pylist()
    targets, class_names = labels_to_targets(labels, loss, name)
    column_of = _first_rows(file, [columns[position] for position in features], taken)
    values = np.stack([column_of(columns[position]) for position in features], axis=1)
    ids = None
    if identifier is not None:
        ids = [str(value) for value in file.read(columns=[columns[identifier]]).column(0).to_pylist()[:taken]]
    return RawSamples(torch.from_numpy(values), targets[:taken], ids, class_names)


def _first_rows(file: Any, columns: list[str], num_rows: int) -> Callable[[str], np.ndarray[Any, Any]]:
    """The first rows of the columns, as float64 with NaN where a value is missing."""
    batches: list[dict[str, np.ndarray[Any, Any]]] = []
    remaining = num_rows
    for batch in file.iter_batches(columns=columns, batch_size=min(num_rows, 65536)):
        part = batch.slice(0, remaining)
        batches.append(
            {
                column: np.array([_or_nan(value) for value in part.column(column).to_pylist()], dtype=np.float64)
                for column in columns
            }
        )
        remaining -= len(part)
        if remaining <= 0:
            break
    return lambda column: np.concatenate([batch[column] for batch in batches])


def _or_nan(value: Any) -> float:
    return math.nan if value is None else float(value)
