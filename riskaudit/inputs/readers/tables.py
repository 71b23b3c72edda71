"""Tables: ``.csv`` and ``.parquet`` with one label column and maybe an ``id`` column.

Features are numbers, or whatever the encoding says that the model was trained with (`encoded`), or a single column of
image files, as in data sets of Hugging Face. Both formats are read
row by row or batch by batch, and no further than ``limit`` needs. Messages name row and column and never show a cell;
the first line of a CSV may be a sample too, so without an encoding columns of a CSV are told by their number.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

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
from riskaudit.inputs.readers.encoded import as_cells, as_text, encoded_samples, label_by_encoding
from riskaudit.inputs.readers.image_files import Images, read_images
from riskaudit.inputs.reading import Reading
from riskaudit.inputs.text import clean
from riskaudit.tables import Cells, TableEncoding, encoding_of

Content = TypeVar("Content")
LABEL_COLUMNS = ("label", "labels", "y", "target", "targets")
ID_COLUMN = "id"
_BATCH_ROWS, _BATCH_IMAGES = 65536, 256
# Texts in memory at once.
_MOST_CELLS = 20_000_000
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
    encoding = reading.encoding
    declared = () if encoding is None else {source for column in encoding.columns for source in column.sources}
    identifier = lowered.index(ID_COLUMN) if ID_COLUMN in lowered else None
    if identifier is not None and columns[identifier] in declared:
        identifier = None
    named = None if encoding is None else label_by_encoding(encoding, columns, name)
    if named is not None:
        return [place for place in range(len(columns)) if place not in (named, identifier)], named, identifier
    others = [position for position in range(len(columns)) if position != identifier]
    last = others[-1] if others and reading.labelled else None
    label = next((lowered.index(wanted) for wanted in LABEL_COLUMNS if wanted in lowered), last)
    if label is not None and columns[label] in declared:
        raise SamplesError(
            f"the column {clean(columns[label], 30)} of {name} would be the label, but the encoding declares it as an "
            "input; name the column of labels there by `label`"
        )
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
    if reading.encoding is not None:
        encoded = _whole_rows(islice(rest, reading.limit), len(columns), name)

        def every() -> set[str]:
            assert label is not None
            return _distinct((row[label].strip() for row in rest if len(row) == len(columns)), name)

        return encoded_samples(columns, encoded, label, identifier, every, reading, name)
    values: list[list[float]] = []
    labels: list[str] = []
    ids: list[str] = []
    for index, row in enumerate(islice(rest, reading.limit)):
        _check_length(row, index, len(columns), name)
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


def _whole_rows(rows: Iterable[list[str]], width: int, name: str) -> list[list[str]]:
    """All of some rows, each with so many cells.

    Raises:
        SamplesError: one hasn't, there are too many, or none.
    """
    whole: list[list[str]] = []
    for index, row in enumerate(rows):
        _check_length(row, index, width, name)
        whole.append(row)
        if len(whole) * width > _MOST_CELLS:
            raise SamplesError(f"{name} holds more than {_MOST_CELLS:,} cells, too many at once; use `limit`")
    if not whole:
        raise SamplesError(f"{name} holds no rows; expected a header and at least one sample")
    return whole


def _check_length(row: Sequence[str], index: int, expected: int, name: str) -> None:
    if len(row) != expected:
        raise SamplesError(f"sample {index} in {name} has {len(row)} cells, expected {expected}; mend that row")


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
            f"sample {index} in {name} has {what} in column {position + 1}, expected a number; declare "
            "the columns in a file for `encoding` (riskaudit encoding infer proposes one), or leave out that column"
        ) from cause


def read_parquet(path: Path, reading: Reading) -> RawSamples:
    """Read a parquet table; pyarrow is needed for it.

    Raises:
        SamplesError: pyarrow isn't installed, the file is damaged, or a feature isn't a number.
    """
    return _with_parquet(path, lambda file: _read_columns(file, reading, clean(path.name)))


def _with_parquet(path: Path, read: Callable[[Any], Content]) -> Content:
    name = clean(path.name)
    try:
        from pyarrow import parquet
    except ImportError as cause:
        raise SamplesError(f'{name} needs pyarrow; run pip install "riskaudit[parquet]"') from cause
    try:
        with parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            return read(file)
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
    if reading.encoding is not None:
        rows = _text_rows(file, columns, taken, name)
        every = lambda: set() if label is None else _every_word(file, columns[label], name)  # noqa: E731
        return encoded_samples(columns, rows, label, identifier, every, reading, name)
    if any(_holds_files(file, position) for position in features):
        images = _image_cells(file, features, taken, reading, name)
        numbered = (
            None if label is None else _named(file, _labels(file, columns[label], taken, reading, name), columns[label])
        )
        return RawSamples(images.pixels, numbered, None, notes=images.notes)
    if taken * len(features) * 8 > MAX_INPUT_BYTES:
        raise SamplesError(f"{name} holds {taken} rows of {len(features)} features, too many; use `limit`")
    for position in features:
        kind = str(file.schema_arrow.field(position).type)
        if not kind.startswith(("int", "uint", "float", "double", "halffloat", "bool")):
            raise SamplesError(
                f"column {clean(columns[position], 30)} in {name} is of type {clean(kind, 30)}, expected numbers; "
                "declare the columns in a file for `encoding` (riskaudit encoding infer proposes one), or leave it out"
            )
    values = np.concatenate([_floats(batch) for batch in _batches(file, [columns[each] for each in features], taken)])
    ids = None
    if identifier is not None:
        batches = _batches(file, [columns[identifier]], taken)
        ids = [str(value) for batch in batches for value in batch.column(0).to_pylist()]
    numbered = None if label is None else _labels(file, columns[label], taken, reading, name)
    return RawSamples(torch.from_numpy(values), numbered, ids)


def _holds_files(file: Any, position: int) -> bool:
    """Whether a column has the bytes of files in its cells, alone or, as Hugging Face stores images, beside a path."""
    import pyarrow

    kind = file.schema_arrow.field(position).type
    if pyarrow.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _image_cells(file: Any, features: Sequence[int], taken: int, reading: Reading, name: str) -> Images:
    """The images of a table's one column of them."""
    columns = file.schema_arrow.names
    if len(features) > 1:
        other = next(position for position in features if not _holds_files(file, position) or position != features[0])
        raise SamplesError(
            f"{name} holds images and besides them the column {clean(columns[other], 30)}, expected a column of images "
            "and one of labels; leave out the others"
        )
    _check_stored_size(file, taken, name)
    contents: list[Path | bytes] = []
    for batch in _batches(file, [columns[features[0]]], taken, _BATCH_IMAGES):
        for cell in batch.column(0).to_pylist():
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            if not content:
                raise SamplesError(
                    f"image {len(contents)} of {name} isn't in the file, which names a place elsewhere or nothing; "
                    "save the data set with its images embedded"
                )
            contents.append(content)
    return read_images(contents, lambda place: f"image {place} of {name}", reading, name)


def _check_stored_size(file: Any, taken: int, name: str) -> None:
    """Refuse what would fill the memory before its images are looked at.

    Raises:
        SamplesError: the parts of the file that hold the rows are too large.
    """
    first, size = 0, 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        if first >= taken:
            break
        first, size = first + group.num_rows, max(size, group.total_byte_size)
    if size > MAX_INPUT_BYTES:
        raise SamplesError(f"{name} holds {size / 1e9:.3g} GB in one row group; save it in smaller ones")


def _named(file: Any, labels: Numbered, column: str) -> Numbered:
    """Class numbers with the names that Hugging Face keeps of them in the file's metadata, if any."""
    if labels.class_names is not None:
        return labels
    try:
        stored = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        names = stored["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return labels
    whole = isinstance(names, list) and all(isinstance(each, str) for each in names)
    if not whole or len(names) > MAX_CLASSES or labels.targets.is_floating_point():
        return labels
    inside = int(labels.targets.min()) >= 0 and int(labels.targets.max()) < len(names)
    return replace(labels, class_names=tuple(names)) if inside else labels


def _labels(file: Any, column: str, taken: int, reading: Reading, name: str) -> Numbered:
    """The first labels; only where they are words the whole column is looked through, for its different words."""
    import pyarrow

    parts = [batch.column(0) for batch in _batches(file, [column], taken)]
    if all(pyarrow.types.is_signed_integer(part.type) and not part.null_count for part in parts):
        targets = torch.from_numpy(np.concatenate([part.to_numpy() for part in parts]).astype(np.int64))
        return renumber(targets, reading, name)
    texts = ["" if value is None else str(value).strip() for part in parts for value in part.to_pylist()]
    return number_labels(texts, lambda: _every_word(file, column, name), reading, name)


def _every_word(file: Any, column: str, name: str) -> set[str]:
    """The different values of a column, as texts."""
    from pyarrow import compute

    batches = file.iter_batches(columns=[column], batch_size=_BATCH_ROWS)
    values = (value for batch in batches for value in compute.unique(batch.column(0)).to_pylist())
    return _distinct((str(value).strip() for value in values if value is not None), name)


def _text_rows(file: Any, columns: Sequence[str], taken: int, name: str) -> list[list[str]]:
    if taken * len(columns) > _MOST_CELLS:
        raise SamplesError(f"{name} holds more than {_MOST_CELLS:,} cells, too many at once; use `limit`")
    rows: list[list[str]] = []
    for batch in _batches(file, list(columns), taken):
        values = [batch.column(place).to_pylist() for place in range(len(columns))]
        rows += [[as_text(value) for value in row] for row in zip(*values, strict=True)]
    return rows


def _batches(file: Any, columns: list[str], num_rows: int, most: int = _BATCH_ROWS) -> Iterator[Any]:
    remaining = num_rows
    for batch in file.iter_batches(columns=columns, batch_size=min(num_rows, most), use_threads=False):
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


def infer_encoding(path: str | Path, label: str | None = None) -> TableEncoding:
    """Propose how the columns of a table become inputs: right only if the model's own preprocessing is the same.

    Args:
        path: of a ``.csv`` or ``.parquet``, all of whose rows are read.
        label: the column of labels; None for the usual names, else the last.

    Raises:
        SamplesError: it can't be read, or a column of which nothing sensible can be made.
    """
    return encoding_of(*read_cells(Path(path), label))


def read_cells(path: Path, label: str | None) -> tuple[Cells, str, list[str]]:
    """All cells of a table as texts, the name of the column of labels, and the names of columns of identifiers.

    Args:
        path: of a ``.csv`` or ``.parquet``.
        label: the column of labels; None for the usual names, else the last.

    Raises:
        SamplesError: it can't be read, or has no such column.
    """
    name = clean(path.name)
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise SamplesError(f"expected a table, .csv or .parquet, found {name}; other samples need no encoding")
    reader = _csv_cells if path.suffix.lower() == ".csv" else _parquet_cells
    columns, rows = reader(path, name)
    cells = as_cells(columns, rows, name)
    _, place, identifier = split_columns(columns, Reading(), name)
    if label is not None and label not in columns:
        raise SamplesError(f"expected the column {clean(label, 30)} of labels in {name}, found none; mend `label`")
    chosen = label if label is not None else "" if place is None else columns[place]
    return cells, chosen, [] if identifier is None else [columns[identifier]]


def _csv_cells(path: Path, name: str) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = (row for row in csv.reader(stream, strict=True) if row)
            columns = next(rows, [])
            if all(is_number(cell) for cell in columns):
                raise SamplesError(f"expected names of columns in the first line of {name}, found numbers; add them")
            return columns, _whole_rows(rows, len(columns), name)
    except (OSError, UnicodeDecodeError, csv.Error, MemoryError) as cause:
        reason = cause if isinstance(cause, csv.Error) else type(cause).__name__
        raise SamplesError(f"{name} isn't a table that can be read ({clean(reason)}); save it as UTF-8 csv") from cause


def _parquet_cells(path: Path, name: str) -> tuple[list[str], list[list[str]]]:
    return _with_parquet(path, lambda file: _all_cells(file, name))


def _all_cells(file: Any, name: str) -> tuple[list[str], list[list[str]]]:
    columns, num_rows = list(file.schema_arrow.names), file.metadata.num_rows
    if num_rows < 1:
        raise SamplesError(f"{name} holds no rows; expected at least one sample")
    return columns, _text_rows(file, columns, num_rows, name)
