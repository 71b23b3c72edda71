"""Tables: ``.csv`` and ``.parquet`` with numeric features, one label column and maybe an ``id`` column.

Both are read row by row or batch by batch, and no further than ``limit`` needs. Messages name row and column and
never show a cell; the first line of a CSV may be a sample too, so columns of a CSV are told by their number.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from riskaudit.errors import SamplesError
from riskaudit.inputs.arrays import (
    MAX_CLASSES,
    MAX_INPUT_BYTES,
    Numbered,
    RawSamples,
    is_number,
    number_labels,
    renumber,
)
from riskaudit.inputs.reading import Reading
from riskaudit.inputs.text import clean

LABEL_COLUMNS = ("label", "labels", "y", "target", "targets")
ID_COLUMN = "id"
_BATCH_ROWS = 65536
# As pandas writes them.
_BOOLEANS = {"true": 1.0, "false": 0.0}


def split_columns(columns: Sequence[str], reading: Reading, name: str) -> tuple[list[int], int | None, int | None]:
    """Positions of the features, of the label (by name, else the last column) and of the id.

    Where no labels are needed, only a column of a label's name is one.

    Raises:
        SamplesError: a column appears twice, or there is no feature.
    """
    lowered = [column.strip().lower() for column in columns]
    if len(set(lowered)) != len(lowered):
        twice = next(number for number, column in enumerate(lowered, 1) if column in lowered[: number - 1])
        raise SamplesError(
            f"{name} has two columns of one name (the second is column {twice}); expected a first line of distinct "
            "names, or numbers only"
        )
    identifier = lowered.index(ID_COLUMN) if ID_COLUMN in lowered else None
    others = [position for position in range(len(columns)) if position != identifier]
    last = others[-1] if others and reading.labelled else None
    label = next((lowered.index(wanted) for wanted in LABEL_COLUMNS if wanted in lowered), last)
    features = [position for position in others if position != label]
    if not features:
        raise SamplesError(f"{name} has {len(columns)} columns, expected features and a label")
    return features, label, identifier


def read_csv(path: Path, reading: Reading) -> RawSamples:
    """Read a comma-separated table, with a header or, if its first row is all numbers, without.

    Raises:
        SamplesError: not text, ragged, no rows, or a feature that isn't a number.
    """
    name = clean(path.name)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return _read_rows((row for row in csv.reader(stream, strict=True) if row), reading, name)
    except (OSError, UnicodeDecodeError, csv.Error, MemoryError) as cause:
        reason = cause if isinstance(cause, csv.Error) else type(cause).__name__
        raise SamplesError(f"{name} isn't a table that can be read ({clean(reason)}); save it as UTF-8 csv") from cause


def _read_rows(rows: Iterator[list[str]], reading: Reading, name: str) -> RawSamples:
    first = next(rows, [])
    headless = bool(first) and all(is_number(cell) for cell in first)
    columns = [str(position) for position in range(len(first))] if headless else first
    rest = chain([first], rows) if headless else rows
    features, label, identifier = split_columns(columns, reading, name) if first else ([], None, None)
    values: list[list[float]] = []
    labels: list[str] = []
    ids: list[str] = []
    for index, row in enumerate(islice(rest, reading.limit)):
        if len(row) != len(columns):
            raise SamplesError(f"sample {index} in {name} has {len(row)} cells, expected {len(columns)}; mend that row")
        values.append([_number(row[position], position, index, name) for position in features])
        if label is not None:
            labels.append(row[label].strip())
        if identifier is not None:
            ids.append(row[identifier])
    if not values:
        raise SamplesError(f"{name} holds no rows; expected a header and at least one sample")
    numbered = None
    if label is not None and (reading.labelled or all(labels)):
        column = label
        later = (row[column].strip() for row in rest if len(row) == len(columns))
        numbered = number_labels(labels, lambda: _distinct(later, name), reading, name)
    return RawSamples(torch.tensor(values, dtype=torch.float64), numbered, None if identifier is None else ids)


def _distinct(words: Iterable[str], name: str) -> set[str]:
    """The different words of a column, while they may be classes."""
    distinct: set[str] = set()
    for word in words:
        if word:
            distinct.add(word)
        if len(distinct) > MAX_CLASSES:
            raise SamplesError(f"{name} holds more than {MAX_CLASSES} different labels; convert them to class numbers")
    return distinct


def _number(cell: str, position: int, index: int, name: str) -> float:
    try:
        return float(cell)
    except ValueError as cause:
        boolean = _BOOLEANS.get(cell.strip().lower())
        if boolean is not None:
            return boolean
        what = "text" if cell.strip() else "nothing"
        raise SamplesError(
            f"sample {index} in {name} has {what} in column {position + 1}, expected a number; encode or leave out "
            "that column"
        ) from cause


def read_parquet(path: Path, reading: Reading) -> RawSamples:
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
        with parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            return _read_columns(file, reading, name)
    except SamplesError:
        raise
    except Exception as cause:
        # Arrow raises its own errors, OSError and ValueError for damage of different kinds, some of which show cells.
        raise SamplesError(
            f"{name} isn't a parquet table that can be read ({type(cause).__name__}); save it again"
        ) from cause


def _read_columns(file: Any, reading: Reading, name: str) -> RawSamples:
    columns = list(file.schema_arrow.names)
    num_rows = file.metadata.num_rows
    if num_rows < 1:
        raise SamplesError(f"{name} holds no rows; expected at least one sample")
    taken = num_rows if reading.limit is None else min(reading.limit, num_rows)
    features, label, identifier = split_columns(columns, reading, name)
    if taken * len(features) * 8 > MAX_INPUT_BYTES:
        raise SamplesError(f"{name} holds {taken} rows of {len(features)} features, too many; use `limit`")
    for position in features:
        kind = str(file.schema_arrow.field(position).type)
        if not kind.startswith(("int", "uint", "float", "double", "halffloat", "bool")):
            raise SamplesError(
                f"column {clean(columns[position], 30)} in {name} is of type {clean(kind, 30)}, expected numbers; "
                "encode or leave out that column"
            )
    values = np.concatenate([_floats(batch) for batch in _batches(file, [columns[each] for each in features], taken)])
    ids = None
    if identifier is not None:
        batches = _batches(file, [columns[identifier]], taken)
        ids = [str(value) for batch in batches for value in batch.column(0).to_pylist()]
    numbered = None if label is None else _labels(file, columns[label], taken, reading, name)
    return RawSamples(torch.from_numpy(values), numbered, ids)


def _labels(file: Any, column: str, taken: int, reading: Reading, name: str) -> Numbered:
    """The first labels; only where they are words the whole column is looked through, for its different words."""
    import pyarrow
    from pyarrow import compute

    parts = [batch.column(0) for batch in _batches(file, [column], taken)]
    if all(pyarrow.types.is_signed_integer(part.type) and not part.null_count for part in parts):
        targets = torch.from_numpy(np.concatenate([part.to_numpy() for part in parts]).astype(np.int64))
        return renumber(targets, reading, name)
    texts = ["" if value is None else str(value).strip() for part in parts for value in part.to_pylist()]

    def every() -> set[str]:
        batches = file.iter_batches(columns=[column], batch_size=_BATCH_ROWS)
        values = (value for batch in batches for value in compute.unique(batch.column(0)).to_pylist())
        return _distinct((str(value).strip() for value in values if value is not None), name)

    return number_labels(texts, every, reading, name)


def _batches(file: Any, columns: list[str], num_rows: int) -> Iterator[Any]:
    remaining = num_rows
    for batch in file.iter_batches(columns=columns, batch_size=min(num_rows, _BATCH_ROWS), use_threads=False):
        part = batch.slice(0, remaining)
        # In the order asked for, which isn't the file's.
        yield part.select(columns)
        remaining -= len(part)
        if remaining <= 0:
            return


def _floats(batch: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A batch as float64 [rows, columns], with NaN where a value is missing."""
    import pyarrow

    # Large whole numbers lose their last digits, as in every float64.
    columns = [column.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False) for column in batch.columns]
    return np.stack(columns, axis=1)
