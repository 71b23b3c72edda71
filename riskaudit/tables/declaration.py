"""An encoding as a TOML file: ``label``, and a table ``[columns.NAME]`` for every column, in the order of the inputs.

Each table has a ``kind``: "number" with ``mean`` and ``std`` or ``low`` and ``high``, "category" with ``categories`` or
``columns``, "boolean", or "ignore"; docs/tables.md has all entries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from riskaudit.errors import SettingsError
from riskaudit.files import read_toml, sha256_of_file, write_file
from riskaudit.tables.columns import Category, Column, IgnoredColumn, NumberColumn
from riskaudit.tables.encoding import TableEncoding

_LARGEST_FILE = 2**24
# How a file begins that `save_encoding` wrote.
FIRST_LINE = "# riskaudit encoding"
_HEADING = f"""{FIRST_LINE}
# It holds for a model only if its own preprocessing is the same. Compare means and standard deviations, the order of
# columns and categories, and what becomes of missing values. It holds statistics and words of people's data.
"""
# Entries that a column of each kind may have.
_ENTRIES = {
    "number": ("mean", "std", "low", "high", "missing", "missing_input", "unit"),
    "category": ("categories", "columns", "missing", "drop_first", "mean", "std"),
    "boolean": ("missing", "mean", "std"),
    "ignore": (),
}


def read_encoding(path: str | Path) -> TableEncoding:
    """The encoding that a TOML file declares.

    Raises:
        SettingsError: the file can't be read, or declares something else; the message says what and where.
    """
    path = Path(path)
    try:
        too_large = path.stat().st_size > _LARGEST_FILE
    except OSError as error:
        raise SettingsError(f"can't read the encoding {path.name}: {error.strerror or error}") from error
    if too_large:
        raise SettingsError(f"expected the encoding of a table in {path.name}, found more than 16 MiB")
    content = read_toml(path)
    unknown = next((name for name in content if name not in ("label", "columns")), None)
    tables = content.get("columns")
    if unknown is not None or not isinstance(tables, dict) or not tables:
        actual = "no columns" if unknown is None else repr(unknown)
        raise SettingsError(
            f"expected `label` and a table [columns.NAME] for every column in {path.name}, found {actual}"
        )
    label = content.get("label")
    if label is not None and not isinstance(label, str):
        raise SettingsError(f"expected `label` in {path.name} to be the name of a column")
    columns = tuple(_column(name, table, path.name) for name, table in tables.items())
    encoding = TableEncoding(columns, label, path.name, sha256_of_file(path))
    _check(encoding, path.name)
    return encoding


def _check(encoding: TableEncoding, file: str) -> None:
    sources = [source for column in encoding.columns for source in column.sources]
    twice = next((source for place, source in enumerate(sources) if source in sources[:place]), None)
    if twice is not None:
        raise SettingsError(f"{file} declares the column {twice!r} twice; name each once")
    if encoding.label in sources:
        raise SettingsError(f"{file} declares the column {encoding.label!r} of labels as an input too; leave one out")
    if not encoding.width:
        raise SettingsError(f"{file} declares no column that the model sees; expected one at least")


class _Entries:
    """The entries of one column's table."""

    def __init__(self, name: str, table: Mapping[str, Any], file: str) -> None:
        self.name, self.table, self.file = name, table, file

    def wrong(self, expected: str) -> SettingsError:
        return SettingsError(f"expected {expected} for the column {self.name!r} in {self.file}; mend the encoding")

    def number(self, entry: str, default: float) -> float:
        value = self.table.get(entry, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(f"a number as {entry}")
        return float(value)

    def flag(self, entry: str) -> bool:
        value = self.table.get(entry, False)
        if not isinstance(value, bool):
            raise self.wrong(f"true or false as {entry}")
        return value

    def words(self, entry: str) -> tuple[str, ...]:
        """Distinct texts; numbers count as they are written."""
        values = self.table.get(entry, [])
        if not isinstance(values, list) or any(isinstance(value, list | dict) for value in values):
            raise self.wrong(f"a list of words as {entry}")
        texts = tuple(str(value).strip() for value in values)
        if len(set(texts)) != len(texts):
            raise self.wrong(f"distinct words as {entry}, not one twice,")
        return texts

    def numbers(self, entry: str, count: int) -> tuple[float, ...]:
        """One number per input of a category, or one for all of them."""
        values = self.table.get(entry, [])
        values = values if isinstance(values, list) else [values] * count
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if not numeric or len(values) not in (0, count) or not all(map(math.isfinite, values)):
            raise self.wrong(f"{count} numbers as {entry}, one per input,")
        if entry == "std" and not all(value > 0 for value in values):
            raise self.wrong("std above 0")
        return tuple(map(float, values))


def _column(name: str, table: Any, file: str) -> Column:
    if not isinstance(table, dict) or table.get("kind") not in _ENTRIES:
        raise SettingsError(
            f"expected kind = {', '.join(map(json.dumps, _ENTRIES))} for the column {name!r} in {file}; declare it"
        )
    kind = table["kind"]
    unknown = next((entry for entry in table if entry not in ("kind", *_ENTRIES[kind])), None)
    if unknown is not None:
        known = ", ".join(_ENTRIES[kind]) or "nothing else"
        raise SettingsError(f"expected {known} beside kind = {json.dumps(kind)} in {file}, found {unknown!r}")
    entries = _Entries(name, table, file)
    if kind == "ignore":
        return IgnoredColumn(name)
    return _number_column(entries) if kind == "number" else _category(entries, boolean=kind == "boolean")


def _number_column(entries: _Entries) -> NumberColumn:
    table = entries.table
    scaled_by: Literal["deviation", "range"] | None
    if {"low", "high"} & set(table):
        if {"mean", "std"} & set(table) or not {"low", "high"} <= set(table):
            raise entries.wrong("mean and std, or both low and high,")
        mean = entries.number("low", 0.0)
        std, scaled_by = entries.number("high", 1.0) - mean, "range"
    else:
        mean, std = entries.number("mean", 0.0), entries.number("std", 1.0)
        scaled_by = "deviation" if {"mean", "std"} <= set(table) else None
    if not std > 0:
        raise entries.wrong("high above low, or std above 0")
    missing = table.get("missing", "refuse")
    if isinstance(missing, str) and missing not in ("refuse", "mean"):
        raise entries.wrong('missing = "refuse", "mean" or a number')
    if missing == "mean" and "mean" not in table:
        raise entries.wrong('`mean` beside missing = "mean"')
    filled = None if missing == "refuse" else mean if missing == "mean" else entries.number("missing", 0.0)
    missing_input = entries.flag("missing_input")
    if missing_input and filled is None:
        raise entries.wrong("what `missing` becomes beside missing_input")
    unit = table.get("unit", "")
    if not isinstance(unit, str):
        raise entries.wrong("a word as unit")
    return NumberColumn(entries.name, mean, std, scaled_by, filled, missing_input, unit.strip()[:20])


def _category(entries: _Entries, *, boolean: bool) -> Category:
    missing = entries.table.get("missing", "refuse")
    if missing not in ("refuse", "category", "zeros") or (boolean and missing == "zeros"):
        raise entries.wrong('missing = "refuse" or "category"' + (', or "zeros"' * (not boolean)))
    drop_first = entries.flag("drop_first")
    if drop_first and missing == "zeros":
        raise entries.wrong('missing = "category" or "refuse" where the first category is all zeros')
    columns = entries.words("columns")
    categories = ("false", "true") if boolean else entries.words("categories") or columns
    if len(categories) < 2:
        raise entries.wrong("two categories at least")
    if columns and (len(columns) != len(categories) or drop_first or missing == "category"):
        raise entries.wrong('one of its columns per category, without drop_first and missing = "category",')
    plain = Category(entries.name, categories, boolean, missing, drop_first, columns=columns)
    mean, std = (entries.numbers(entry, plain.width) for entry in ("mean", "std"))
    return Category(entries.name, categories, boolean, missing, drop_first, mean, std, columns)


def save_encoding(encoding: TableEncoding, path: str | Path) -> None:
    """Write the TOML file that declares an encoding, readable for its owner alone.

    Raises:
        OutputError: the place can't be written.
    """
    write_file(Path(path), (_HEADING + written(encoding)).encode(), private=True)


def written(encoding: TableEncoding) -> str:
    """The TOML that declares an encoding."""
    lines: list[str] = []
    if encoding.label is not None:
        lines += [f"label = {json.dumps(encoding.label)}"]
    for column in encoding.columns:
        lines += ["", f"[columns.{json.dumps(column.name)}]", f'kind = "{column.kind or "ignore"}"']
        lines += [f"{name} = {value}" for name, value in _entries_of(column)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _entries_of(column: Column) -> list[tuple[str, str]]:
    """A column's entries as TOML, those left out that say nothing."""
    if isinstance(column, NumberColumn):
        filled = column.missing
        entries: list[tuple[str, Any]] = [("mean", column.mean), ("std", column.std)]
        if column.scaled_by is None:  # one of them at most
            entries = [
                (name, value) for (name, value), plain in zip(entries, (0.0, 1.0), strict=True) if value != plain
            ]
        if column.scaled_by == "range":
            entries = [("low", column.mean), ("high", column.mean + column.std)]
        if filled is not None:
            entries.append(("missing", "mean" if column.scaled_by != "range" and filled == column.mean else filled))
        entries += [("missing_input", True)] * column.missing_input + [("unit", column.unit)] * bool(column.unit)
    elif isinstance(column, Category):
        listed = [("categories", column.categories), ("columns", column.columns)]
        entries = [(name, list(words)) for name, words in listed if words and not column.boolean]
        entries += [("missing", column.missing)] * (column.missing != "refuse")
        entries += [("drop_first", True)] * column.drop_first
        entries += [(name, list(values)) for name, values in (("mean", column.mean), ("std", column.std)) if values]
    else:
        entries = []
    # Texts, numbers, booleans and lists of them are written alike in both.
    return [(name, json.dumps(value, ensure_ascii=False)) for name, value in entries]
