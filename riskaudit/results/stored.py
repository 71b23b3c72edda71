"""Rows of a large result on disk: read anew by whoever goes through them, to keep memory flat in their number."""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Generic, TypeVar, final, overload

from typing_extensions import override

from riskaudit.results.base import Record

RecordT = TypeVar("RecordT", bound=Record)
# Rows that are read at once.
_BLOCK = 64


@final
class StoredRows(Sequence[RecordT], Generic[RecordT]):
    """Records in a file without a name, which goes with the last reference to it; equal to a list of equal records.

    Args:
        kind: of the records.
        rows: the first ones.
    """

    def __init__(self, kind: type[RecordT], rows: Iterable[RecordT] = ()) -> None:
        self._kind = kind
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._ends = array("Q", [0])
        self.extend(rows)

    def extend(self, rows: Iterable[RecordT]) -> None:
        """Add records."""
        for row in rows:
            content = row.model_dump_json().encode()
            # The place is named, since readers don't move it.
            written = 0
            while written < len(content):
                written += os.pwrite(self._file.fileno(), content[written:], self._ends[-1] + written)
            self._ends.append(self._ends[-1] + len(content))

    def __iadd__(self, rows: Iterable[RecordT]) -> StoredRows[RecordT]:
        self.extend(rows)
        return self

    @override
    def __len__(self) -> int:
        return len(self._ends) - 1

    @override
    def __iter__(self) -> Iterator[RecordT]:
        for first in range(0, len(self), _BLOCK):
            yield from self._read(first, min(first + _BLOCK, len(self)))

    @overload
    def __getitem__(self, place: int) -> RecordT: ...

    @overload
    def __getitem__(self, place: slice) -> list[RecordT]: ...

    @override
    def __getitem__(self, place: int | slice) -> RecordT | list[RecordT]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        first = range(len(self))[place]
        return self._read(first, first + 1)[0]

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list | StoredRows):
            return NotImplemented
        return len(self) == len(other) and all(own == others for own, others in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _read(self, first: int, last: int) -> list[RecordT]:
        ends = self._ends[first : last + 1]
        content = os.pread(self._file.fileno(), ends[-1] - ends[0], ends[0])
        return [self._kind.model_validate_json(content[low - ends[0] : high - ends[0]]) for low, high in pairwise(ends)]


def kept_as(rows: Sequence[RecordT], changed: Iterable[RecordT]) -> Sequence[RecordT]:
    """Changed records where the unchanged ones are: on disk, or in a list."""
    return StoredRows(rows._kind, changed) if isinstance(rows, StoredRows) else list(changed)
