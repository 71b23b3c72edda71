"""Keyed MACs over a ledger: one per sample's row, one per bucket of rows, one per round over everything.

A round's MAC covers the round before, the round itself, where the log stood, and the digests of all buckets. A bucket
is the rows whose ids begin alike, so that a row is checked, or seen to be missing, by reading its bucket: the work of
a review grows with the rows that it touches, not with the file. An earlier copy of one row has a valid MAC of its own
but not its bucket's; an earlier copy of the whole file is what the counter is for (`riskaudit.guard.keys`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

from riskaudit.guard.keys import GENESIS, TamperingError, mac_of

BUCKET_BITS = 12


@dataclass(frozen=True)
class Round:
    """A row of the table of rounds.

    Attributes:
        number: 1, 2, ... without gaps.
        created_at: UTC, ISO 8601.
        num_samples: in the update.
        update_digest: of what left.
        log: identity of the log that the guard wrote to; empty without.
        log_number: of its last line before this round.
        log_head: hash of that line.
    """

    number: int
    created_at: str
    num_samples: int
    update_digest: str
    log: str
    log_number: int
    log_head: str


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

    def last(self) -> tuple[int, str]:
        """Number and MAC of the last round, checked against the round before and against the buckets.

        Raises:
            TamperingError: they don't fit.
        """
        newest = self.rounds("ORDER BY number DESC LIMIT 2")
        if not newest:
            if self._all("SELECT 1 FROM samples LIMIT 1") or self._all("SELECT 1 FROM buckets LIMIT 1"):
                raise self.broken("it holds samples but no round")
            return 0, GENESIS
        last, mac = newest[0]
        before = newest[1][1].hex() if len(newest) > 1 else GENESIS
        previous = newest[1][0].number if len(newest) > 1 else 0
        root, stored = self._root(), self._all("SELECT root FROM rounds WHERE number = ?", last.number)[0][0]
        if last.number != previous + 1 or mac != self._round(last, before, root) or stored != root:
            raise self.broken("its last round isn't as it was written")
        return last.number, mac.hex()

    def rounds(self, order: str) -> list[tuple[Round, bytes]]:
        """Rows of the table of rounds with their MACs."""
        names = ", ".join(Round.__dataclass_fields__)
        return [(Round(*row[:-1]), bytes(row[-1])) for row in self._all(f"SELECT {names}, mac FROM rounds {order}")]

    def last_of_log(self, identity: str) -> Round | None:
        """The last round that names this log; None where none does."""
        number = self._all("SELECT MAX(number) FROM rounds WHERE log = ?", identity)[0][0]
        return None if number is None else self.rounds(f"WHERE number = {int(number)}")[0][0]

    def refuse_changed(self, identifiers: Iterable[str]) -> None:
        """Check the buckets of these ids against their digests.

        Raises:
            TamperingError: a row was added, removed, or put back to an earlier state.
        """
        for bucket in {bucket_of(identifier) for identifier in identifiers}:
            digests = self._all("SELECT digest FROM buckets WHERE number = ?", bucket)
            members = self._members(bucket)
            if (bytes(digests[0][0]) if digests else b"") != (self._mac(b"bucket", members) if members else b""):
                raise self.broken("samples were changed, removed or put back")

    def mac_in_bucket(self, identifier: str) -> bytes | None:
        """The MAC that the bucket has of a row; None where it has none."""
        rows = self._all("SELECT mac FROM samples WHERE bucket = ? AND id = ?", bucket_of(identifier), identifier)
        return bytes(rows[0][0]) if rows else None

    def write(self, row: Round, before: str, identifiers: Iterable[str]) -> str:
        """Close a round whose samples are written, and return its MAC."""
        for bucket in {bucket_of(identifier) for identifier in identifiers}:
            digest = self._mac(b"bucket", self._members(bucket))
            self._database.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?)", (bucket, digest))
        root = self._root()
        mac = self._round(row, before, root)
        values = (*astuple(row), root, mac)
        self._database.execute("INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        return mac.hex()

    def problems(self) -> list[str]:
        """What is wrong with the whole chain of rounds and with every bucket."""
        problems, number, before, roots = [], 0, GENESIS, dict(self._all("SELECT number, root FROM rounds"))
        for each, mac in self.rounds("ORDER BY number"):
            if each.number != number + 1:
                problems.append(f"after round {number} comes round {each.number}: rounds were removed")
            if mac != self._round(each, before, bytes(roots[each.number])):
                problems.append(f"round {each.number} isn't as it was written: its MAC doesn't fit")
            number, before = each.number, mac.hex()
        members = {bucket_of(str(row[0])) for row in self._all("SELECT id FROM samples")}
        # Those from here on are not of samples (`riskaudit.guard.ledger.noise`).
        numbers = self._all("SELECT number FROM buckets WHERE number < ?", 2**BUCKET_BITS)
        for bucket in sorted(members | {int(row[0]) for row in numbers}):
            digests, rows = self._all("SELECT digest FROM buckets WHERE number = ?", bucket), self._members(bucket)
            if not digests or bytes(digests[0][0]) != self._mac(b"bucket", rows):
                problems.append("samples were changed, removed or put back: the MAC over them doesn't fit")
        return problems

    def broken(self, what: str) -> TamperingError:
        """The error that says so and what to do."""
        return TamperingError.changed("ledger", self._name, what)

    def _members(self, bucket: int) -> list[object]:
        rows = self._all("SELECT id, mac FROM samples WHERE bucket = ? ORDER BY id", bucket)
        return [part for row in rows for part in row]

    def _root(self) -> bytes:
        rows = self._all("SELECT number, digest FROM buckets ORDER BY number")
        return self._mac(b"root", [rows])

    def _round(self, row: Round, before: str, root: bytes) -> bytes:
        return self._mac(b"round", [before, *astuple(row), root])

    def _mac(self, purpose: bytes, values: Iterable[object]) -> bytes:
        return mac_of(self._key, purpose, *(_encoded(value) for value in values))

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._database.execute(query, values).fetchall()


def _encoded(value: object) -> bytes:
    """A column's value, or several rows, so that different ones are different bytes."""
    if isinstance(value, bytes):
        return b"b" + value
    return b"r" + repr(value).encode()
