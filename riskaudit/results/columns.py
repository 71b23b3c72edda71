"""The samples of a large audit as a table beside audit.json: Parquet, of which the rows come back as they were.

What people look for has a column of its own; the rest of a row is JSON in the column ``rest``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from riskaudit.errors import ResultError, SettingsError
from riskaudit.results.base import Record

if TYPE_CHECKING:
    import pyarrow

FILE_NAME = "samples.parquet"
# Beyond so many samples an audit is a large one; and how many of its samples audit.json keeps and reports list.
MANY, SHOWN = 10_000, 200
# Rows of a row group.
_GROUP = 2048
_PARTS = ("value", "low", "high", "status")
_TEXTS, _NUMBERS, _COUNTS = ("id", "verdict", "status", "reason"), ("loss", "concentration"), ("target", "upload")


class SampleColumns(Record):
    """Where the samples are that audit.json doesn't hold, and what all of them say together.

    Attributes:
        file: name of the table beside audit.json.
        sha256: SHA-256 of the table, in hexadecimal digits.
        num_samples: number of samples in the table.
        shown: number of them that ``samples`` of audit.json holds: the most exposed, most exposed first.
        levels: levels of the quantiles, ascending, from 0 to 1.
        quantiles: quantiles of each proxy's known values at these levels, by the proxy's id, in its units; null where
            no value is known.
        verdicts: number of samples with each verdict.
        statuses: number of samples with each status.
    """

    file: Literal["samples.parquet"] = "samples.parquet"
    sha256: str
    num_samples: int
    shown: int
    levels: list[float] = Field(default_factory=list)
    quantiles: dict[str, list[float | None]] = Field(default_factory=dict)
    verdicts: dict[str, int] = Field(default_factory=dict)
    statuses: dict[str, int] = Field(default_factory=dict)


def check_parquet() -> None:
    """Refuse to begin what could not be written.

    Raises:
        SettingsError: pyarrow isn't installed.
    """
    if find_spec("pyarrow") is None:
        raise SettingsError('the samples of so large an audit go to a Parquet file; pip install "riskaudit[parquet]"')


def to_parquet(rows: Sequence[Record]) -> bytes:
    """Rows of samples as a table, some thousands of them in memory at once."""
    from pyarrow import parquet

    proxies = list(dict.fromkeys(proxy for row in rows for proxy in row.proxies))  # type: ignore[attr-defined]
    # Other targets than class numbers are lists or numbers of any kind.
    counts = [name for name in _COUNTS if all(isinstance(getattr(row, name), int | None) for row in rows)]
    stream, writer = io.BytesIO(), None
    for part in _parts(rows):
        table = _table([row.model_dump(mode="json") for row in part], proxies, counts)
        writer = writer or parquet.ParquetWriter(stream, table.schema)
        writer.write_table(table)
    if writer is None:
        parquet.write_table(_table([], proxies, counts), stream)
    else:
        writer.close()
    return stream.getvalue()


def _parts(rows: Iterable[Record]) -> Iterator[list[Record]]:
    """So many rows at once as a row group has."""
    remaining = iter(rows)
    while part := list(islice(remaining, _GROUP)):
        yield part


def _table(rows: Sequence[Mapping[str, Any]], proxies: Sequence[str], counts: Sequence[str]) -> pyarrow.Table:
    """Rows as audit.json has them, as columns."""
    import pyarrow

    columns: dict[str, Any] = {name: pyarrow.array([row[name] for row in rows], pyarrow.string()) for name in _TEXTS}
    columns |= {name: pyarrow.array([row[name] for row in rows], pyarrow.int64()) for name in counts}
    columns |= {name: pyarrow.array([row[name] for row in rows], pyarrow.float64()) for name in _NUMBERS}
    for proxy in proxies:
        estimates = [row["proxies"].get(proxy) or {} for row in rows]
        for part in _PARTS:
            kind = pyarrow.string() if part == "status" else pyarrow.float64()
            columns[f"{proxy}.{part}"] = pyarrow.array([each.get(part) for each in estimates], kind)
    taken = {*_TEXTS, *_NUMBERS, *counts, "proxies"}
    rest = [json.dumps({name: value for name, value in row.items() if name not in taken}) for row in rows]
    return pyarrow.table({**columns, "rest": pyarrow.array(rest, pyarrow.string())})


def from_parquet(content: bytes, name: str = FILE_NAME) -> list[dict[str, Any]]:
    """The rows of such a table; ``name`` of the file is for messages.

    Raises:
        ResultError: pyarrow isn't installed, or it is no such table.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ResultError(f'{name} needs pyarrow; pip install "riskaudit[parquet]"') from error
    try:
        table = parquet.read_table(io.BytesIO(content)).to_pylist()
        return [_row(each) for each in table]
    except (ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ResultError(f"expected the samples of an audit in {name}, found something else") from error


def _row(columns: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(columns.pop("rest"))
    row["proxies"] = {}
    for name, value in columns.items():
        proxy, _, part = name.rpartition(".")
        if not proxy:
            row[name] = value
        elif columns[f"{proxy}.status"] is not None:
            row["proxies"].setdefault(proxy, {})[part] = value
    return row
