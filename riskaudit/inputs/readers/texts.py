"""Texts with labels: ``.txt`` (a text a line), ``.csv``, ``.jsonl`` and ``.parquet`` with ``text`` and ``label``.

Read no further than ``limit`` needs. Messages name rows and columns and never show a text.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from riskaudit.errors import SamplesError
from riskaudit.inputs.arrays import MAX_CLASSES, Numbered, as_tensor, number_labels, numbered_array
from riskaudit.inputs.readers.npz import read_named_arrays
from riskaudit.inputs.readers.tables import ID_COLUMN, LABEL_COLUMNS
from riskaudit.inputs.reading import Reading
from riskaudit.inputs.text import clean, listing

TEXT_SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet")
TEXT_COLUMNS = ("text", "sentence", "content")
# Characters of one text.
MOST_CHARACTERS = 10**6
_BATCH_ROWS = 4096


@dataclass(frozen=True)
class RawTexts:
    """Texts and labels as a file holds them; labels None where it has none."""

    texts: Sequence[str]
    labels: Numbered | None = None
    ids: Sequence[str] | None = None


def read_texts(path: Path, reading: Reading, *, labelled: bool) -> RawTexts:
    """The texts of a file.

    Args:
        path: of one of `TEXT_SUFFIXES`.
        reading: how.
        labelled: whether every text needs a label.

    Raises:
        SamplesError: not such a file, no texts, or a text without label.
    """
    name = clean(path.name)
    try:
        rows = list(islice(_rows(path, reading, name), reading.limit))
        if not rows:
            raise SamplesError(f"{name} holds no texts; expected at least one")
        texts = [_text(row, number, name) for number, row in enumerate(rows)]
        labels = _labels(rows, path, reading, name, labelled=labelled)
    except (OSError, UnicodeDecodeError, csv.Error, MemoryError) as cause:
        reason = cause if isinstance(cause, csv.Error) else type(cause).__name__
        raise SamplesError(f"{name} isn't a file of texts that can be read ({clean(reason)}); save it as UTF-8") from (
            cause
        )
    ids = None
    if all(ID_COLUMN in row for row in rows):
        ids = [str(row[ID_COLUMN]) for row in rows]
    return RawTexts(texts, labels, ids)


def _rows(path: Path, reading: Reading, name: str) -> Iterator[Mapping[str, Any]]:
    match path.suffix.lower():
        case ".txt":
            with path.open(encoding="utf-8-sig") as lines:
                for line in lines:
                    yield {"text": line.rstrip("\n")}
        case ".csv":
            with path.open(newline="", encoding="utf-8-sig") as stream:
                table = csv.reader(stream, strict=True)
                header = _renamed(next(table, []), name)
                for number, row in enumerate(row for row in table if row):
                    if len(row) != len(header):
                        raise SamplesError(
                            f"text {number} in {name} has {len(row)} cells, expected {len(header)}; mend that row "
                            "(texts with commas need quotes)"
                        )
                    yield dict(zip(header, row, strict=True))
        case ".jsonl":
            yield from _json_lines(path, name)
        case ".parquet":
            yield from _parquet(path, name)


def _renamed(columns: Sequence[str], name: str) -> list[str]:
    """Columns by the names that are used here: ``text``, ``label`` and ``id``; others as they are."""
    lowered = [str(column).strip().lower() for column in columns]
    if len(set(lowered)) != len(lowered):
        raise SamplesError(f"{name} has two columns of one name; expected distinct names")
    text = next((wanted for wanted in TEXT_COLUMNS if wanted in lowered), None)
    if text is None:
        raise SamplesError(
            f"expected a column text in {name}, found {listing(columns) or 'no columns'}; name the column of the texts "
            "`text` and that of the labels `label`"
        )
    label = next((wanted for wanted in LABEL_COLUMNS if wanted in lowered), None)
    own = {text: "text"} | ({} if label is None else {label: "label"})
    return [own.get(column, column) for column in lowered]


def _json_lines(path: Path, name: str) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(line for line in lines if line.strip()):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as cause:
                raise SamplesError(f"line {number + 1} of {name} isn't JSON; expected an object a line") from cause
            if not isinstance(row, dict):
                raise SamplesError(f"line {number + 1} of {name} is no JSON object; expected text and label in each")
            yield dict(zip(_renamed(list(row), name), row.values(), strict=True))


def _parquet(path: Path, name: str) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as cause:
        raise SamplesError(f'{name} needs pyarrow; run pip install "riskaudit[parquet]"') from cause
    try:
        with parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            columns = list(file.schema_arrow.names)
            names = _renamed(columns, name)
            wanted = [column for column, own in zip(columns, names, strict=True) if own in ("text", "label", ID_COLUMN)]
            for batch in file.iter_batches(columns=wanted, batch_size=_BATCH_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    yield dict(zip(_renamed(list(row), name), row.values(), strict=True))
    except SamplesError:
        raise
    except Exception as cause:
        # Arrow raises its own errors, OSError and ValueError for damage of different kinds, some of which show cells.
        raise SamplesError(
            f"{name} isn't a parquet table that can be read ({type(cause).__name__}); save it again"
        ) from cause


def _text(row: Mapping[str, Any], number: int, name: str) -> str:
    text = row["text"]
    if not isinstance(text, str):
        raise SamplesError(f"text {number} in {name} is no text but a {type(text).__name__}; mend or leave out the row")
    if not text.strip():
        raise SamplesError(f"text {number} in {name} is empty; leave it out")
    if len(text) > MOST_CHARACTERS:
        raise SamplesError(f"text {number} in {name} has more than {MOST_CHARACTERS} characters; cut it into parts")
    return text


def _labels(
    rows: Sequence[Mapping[str, Any]], path: Path, reading: Reading, name: str, *, labelled: bool
) -> Numbered | None:
    if not labelled:
        return None
    if not all("label" in row for row in rows):
        raise SamplesError(
            f"{name} has no labels, which classification needs; hand in a .csv or .jsonl with text and label, or name "
            "another `task`"
        )
    words = ["" if row["label"] is None else str(row["label"]).strip() for row in rows]

    def every() -> Iterable[str]:
        distinct: set[str] = set()
        for row in _rows(path, reading, name):
            if row.get("label") is not None:
                distinct.add(str(row["label"]).strip())
            if len(distinct) > MAX_CLASSES:
                raise SamplesError(f"{name} holds more than {MAX_CLASSES} different labels; convert them to numbers")
        return distinct - {""}

    return number_labels(words, every, reading, name, what="text")


def read_token_numbers(path: Path, reading: Reading, *, labelled: bool) -> tuple[list[list[int]], Numbered | None]:
    """Numbers of tokens from arrays: ``input_ids`` (or inputs) [N, T], ``attention_mask`` and ``labels``.

    Raises:
        SamplesError: no whole numbers, or a mask that isn't ones before zeros.
    """
    name = clean(path.name)
    arrays = read_named_arrays(path, SamplesError)
    key = next((each for each in ("input_ids", "inputs", "x") if each in arrays), None)
    if key is None:
        raise SamplesError(f"expected numbers of tokens under input_ids in {name}, found {listing(arrays)}")
    ids = as_tensor(arrays[key], "tokens", name)[: reading.limit]
    if ids.ndim != 2 or ids.is_floating_point() or not ids.numel():
        raise SamplesError(f"expected whole numbers of tokens [N, T] under {key} in {name}, found another array")
    rows = ids.long().tolist()
    if "attention_mask" in arrays:
        mask = as_tensor(arrays["attention_mask"], "attention_mask", name)[: reading.limit].long()
        if mask.shape != ids.shape or bool((mask.diff(dim=1) > 0).any()) or bool(((mask != 0) & (mask != 1)).any()):
            raise SamplesError(
                f"expected an attention_mask in {name} of the tokens' shape, ones before zeros; pad texts at their ends"
            )
        rows = [row[:count] for row, count in zip(rows, mask.sum(1).tolist(), strict=True)]
    labels = next((each for each in LABEL_COLUMNS if each in arrays), None)
    if labels is None or not labelled:
        return rows, None
    return rows, numbered_array(arrays[labels], reading, name, ids)
