"""The rows of a checkpoint's shards without holding them: on disk, and read again from the shards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import final

from typing_extensions import override

from riskaudit.audit.rows import BatchRows
from riskaudit.results import SampleRow
from riskaudit.results.stored import StoredRows
from riskaudit.sensitivity import Concentration, Information


@final
class StoredInformation(Collection[Information]):
    """What samples' releases tell, decoded from their shards whenever it is gone through."""

    def __init__(self) -> None:
        self._parts: list[Callable[[], BatchRows]] = []
        self._size = 0

    def add(self, size: int, read: Callable[[], BatchRows]) -> None:
        """Add a shard with what it tells of so many samples, and the way to read it."""
        self._parts.append(read)
        self._size += size

    @override
    def __len__(self) -> int:
        return self._size

    @override
    def __iter__(self) -> Iterator[Information]:
        return (each for read in self._parts for each in read().information)

    @override
    def __contains__(self, value: object) -> bool:
        return any(each is value for each in self)


@dataclass
class StoredBatchRows:
    """As `BatchRows`, of so many samples that their rows aren't held in memory."""

    rows: StoredRows[SampleRow] = field(default_factory=lambda: StoredRows(SampleRow))
    information: StoredInformation = field(default_factory=StoredInformation)
    reasons: dict[str, str] = field(default_factory=dict)
    matvecs: int = 0
    separate: int = 0
    uneven: dict[int, Concentration] = field(default_factory=dict)

    def extend(self, part: BatchRows, read: Callable[[], BatchRows]) -> None:
        """Add a shard, which ``read`` reads again."""
        self.rows.extend(part.rows)
        self.information.add(len(part.information), read)
        self.reasons |= part.reasons
        self.matvecs += part.matvecs
        self.separate += part.separate
        self.uneven |= part.uneven
