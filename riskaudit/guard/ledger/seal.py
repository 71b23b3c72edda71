"""Keyed MACs over a ledger: one per sample's row, one per bucket of rows, one per round over everything.

A round's MAC covers the round before, the round itself, where the log stood, and the digests of all buckets. A bucket
is the rows whose ids begin alike, so that a row is checked, or seen to be missing, by reading its bucket: the work of
a review grows with the rows that it touches, not with the file. An earlier copy of one row has a valid MAC of its own
but not its bucket's; an earlier copy of the whole file is what the counter is for (`riskaudit.guard.keys`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from riskaudit.guard.keys import GENESIS, State, TamperingError, mac_of

BUCKET_BITS = 12
# What a round's MAC covers besides the round before and the buckets.
ROUND_COLUMNS = ("number", "created_at", "num_samples", "update_digest", "log", "log_number", "log_head")


def read_rows(database: sqlite3.Connection, query: str, *values: object) -> list[tuple[Any, ...]]:
    """All rows of a query's result."""
    return database.execute(query, values).fetchall()


@lru_cache(2**14)
def bucket_of(identifier: str) -> int:
    """Number of the bucket of a hidden id; ids are evenly distributed."""
    return int.from_bytes(mac_of(b"", identifier.encode("utf-8", "replace"))[:2], "big") >> (16 - BUCKET_BITS)


class Seal:
    """The MACs of one open ledger.

    Args:
        database: of the ledger.
        key: of the ledger.
        name: of the file, for messages.
    """

    def __init__(self, database: sqlite3.Connection, key: bytes, name: str) -> None:
        self._database, self._key, self._name = database, key, name

    def row(self, values: Iterable[object]) -> bytes:
        """MAC of a sample's row: all its columns but the bucket and the MAC."""
        return self._mac(b"sample", values)

    def last(self) -> State:
        """Number and MAC of the last round, checked against the round before and against the buckets.

        Raises:
            TamperingError: they don't fit.
        """
        newest = self.rounds("ORDER BY number DESC LIMIT 2")
        if not newest:
            if self._all("SELECT 1 FROM samples LIMIT 1") or self._all("SELECT 1 FROM buckets LIMIT 1"):
                raise self.broken("it holds samples but no round")
            return 0, GENESIS
        last = newest[0]
        previous, before = (newest[1]["number"], head_of(newest[1])) if len(newest) > 1 else (0, GENESIS)
        root = self._root()
        is_intact = last["root"] == root and last["mac"] == self._round(last, before, root)
        if not is_intact or last["number"] != previous + 1:
            raise self.broken("its last round isn't as it was written")
        return last["number"], head_of(last)

    def rounds(self, order: str) -> list[sqlite3.Row]:
        """Rows of the table of rounds, with their columns' names."""
        cursor = self._database.cursor()
        cursor.row_factory = sqlite3.Row
        return cursor.execute(f"SELECT {', '.join(ROUND_COLUMNS)}, root, mac FROM rounds {order}").fetchall()

    def last_of_log(self, identity: str) -> sqlite3.Row | None:
        """The last round that names this log; None where none does."""
        number = self._all("SELECT MAX(number) FROM rounds WHERE log = ?", identity)[0][0]
        return None if number is None else self.rounds(f"WHERE number = {int(number)}")[0]

    def refuse_changed(self, identifiers: Iterable[str]) -> None:
        """Check the buckets of these ids against their digests.

        Raises:
            TamperingError: a row was added, removed, or put back to an earlier state.
        """
        if not all(self._is_intact(bucket) for bucket in {bucket_of(identifier) for identifier in identifiers}):
            raise self.broken("samples were changed, removed or put back")

    def mac_in_bucket(self, identifier: str) -> bytes | None:
        """The MAC that the bucket has of a row; None where it has none."""
        rows = self._all("SELECT mac FROM samples WHERE bucket = ? AND id = ?", bucket_of(identifier), identifier)
        return bytes(rows[0][0]) if rows else None

    def write(self, row: Sequence[object], before: str, identifiers: Iterable[str]) -> str:
        """Close a round of these ``ROUND_COLUMNS`` whose samples are written, and return its MAC."""
        for bucket in {bucket_of(identifier) for identifier in identifiers}:
            digest = self._mac(b"bucket", self._members(bucket))
            self._database.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?)", (bucket, digest))
        root = self._root()
        mac = self._round(row, before, root)
        self._database.execute("INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, root, mac))
        return mac.hex()

    def problems(self) -> list[str]:
        """What is wrong with the whole chain of rounds and with every bucket."""
        problems, number, before = [], 0, GENESIS
        for row in self.rounds("ORDER BY number"):
            if row["number"] != number + 1:
                problems.append(f"after round {number} comes round {row['number']}: rounds were removed")
            if row["mac"] != self._round(row, before, bytes(row["root"])):
                problems.append(f"round {row['number']} isn't as it was written: its MAC doesn't fit")
            number, before = row["number"], head_of(row)
        buckets = {bucket_of(str(row[0])) for row in self._all("SELECT id FROM samples")}
        # Those from here on are not of samples (`riskaudit.guard.ledger.noise`).
        buckets |= {int(row[0]) for row in self._all("SELECT number FROM buckets WHERE number < ?", 2**BUCKET_BITS)}
        sentence = "samples were changed, removed or put back: the MAC over them doesn't fit"
        return problems + [sentence for bucket in sorted(buckets) if not self._is_intact(bucket)]

    def broken(self, what: str) -> TamperingError:
        """The error that says so and what to do."""
        return TamperingError.changed("ledger", self._name, what)

    def _is_intact(self, bucket: int) -> bool:
        """Whether a bucket has the digest of its rows; one without rows has none."""
        digests, members = self._all("SELECT digest FROM buckets WHERE number = ?", bucket), self._members(bucket)
        return (bytes(digests[0][0]) if digests else b"") == (self._mac(b"bucket", members) if members else b"")

    def _members(self, bucket: int) -> list[object]:
        rows = self._all("SELECT id, mac FROM samples WHERE bucket = ? ORDER BY id", bucket)
        return [part for row in rows for part in row]

    def _root(self) -> bytes:
        return self._mac(b"root", [self._all("SELECT number, digest FROM buckets ORDER BY number")])

    def _round(self, row: Sequence[object] | sqlite3.Row, before: str, root: bytes) -> bytes:
        return self._mac(b"round", [before, *tuple(row)[: len(ROUND_COLUMNS)], root])

    def _mac(self, purpose: bytes, values: Iterable[object]) -> bytes:
        return mac_of(self._key, purpose, *(_encoded(value) for value in values))

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return read_rows(self._database, query, *values)


def head_of(row: sqlite3.Row) -> str:
    """MAC of a round, hexadecimal."""
    return bytes(row["mac"]).hex()


def _encoded(value: object) -> bytes:
    """A column's value, or several rows, so that different ones are different bytes."""
    return b"b" + value if isinstance(value, bytes) else b"r" + repr(value).encode()
