"""Traces of noise and digests of sanitised updates in a ledger, so that a later process can compare with them.

Traces are encrypted with a key that lies outside the ledger's folder, and every row of them has a MAC over the row
before, the last one's being under the ledger's own. Digests are keyed, and in buckets, each under a MAC. So who has
the ledger alone reads nothing of the noise, and rows that were changed or removed are noticed when they are needed.

The newest 1024 traces are kept, and of sanitised updates about the newest 65,000.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from riskaudit.errors import GuardError
from riskaudit.guard.keys import TamperingError, mac_of
from riskaudit.guard.ledger.seal import BUCKET_BITS, read_rows
from riskaudit.guard.noise.traces import TRACES, Trace, repetition

TABLES = """
CREATE TABLE IF NOT EXISTS noise (
    place INTEGER PRIMARY KEY, before BLOB NOT NULL, trace BLOB NOT NULL, mac BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS sanitised (
    bucket INTEGER NOT NULL, place INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (bucket, place)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_digest ON sanitised (digest);
"""
# Numbers among the ledger's buckets: of the last trace, and of the buckets of sanitised updates.
NEWEST = 2**BUCKET_BITS
FIRST_BUCKET, BUCKETS, PER_BUCKET = NEWEST + 1, 64, 1024
NONCE = 16
SECOND_DRAW = "this update was sanitised before, and no second draw of noise is made for it; make a new update"


class RepetitionError(GuardError):
    """What is about to leave has noise that left before, or is a second draw: withheld whatever the policy says."""


class NoiseRecords:
    """The records of one open ledger.

    Args:
        database: of the ledger.
        key: derived for this from the key outside its folder.
        broken: makes the error of a ledger that isn't as it was left.

    Attributes:
        trace_key: of the traces that can be compared with these.
    """

    def __init__(self, database: sqlite3.Connection, key: bytes, broken: Callable[[str], TamperingError]) -> None:
        self._database, self._key, self._broken = database, key, broken
        self.trace_key = mac_of(key, b"traces")
        self._last, self._head = 0, b""
        self._traces: deque[Trace] = deque(maxlen=TRACES)

    def make(self) -> None:
        """The tables, where they aren't there: a ledger that has lost them isn't whole, which its MACs tell."""
        for statement in TABLES.split(";"):
            self._database.execute(statement)

    def was_sanitised(self, digest: bytes) -> bool:
        """Whether an update of this keyed digest was; what is absent here is checked when a round is added."""
        return bool(read_rows(self._database, "SELECT 1 FROM sanitised WHERE digest = ?", digest))

    def add(self, traces: Sequence[Trace], sanitised: bytes | None) -> None:
        """Compare with what is there, and write, within the ledger's transaction and before its round is closed.

        Args:
            traces: of the noise on what was handed in, and of all noise on what leaves where that is another one.
            sanitised: keyed digest of the update that noise was added to; None where none was.

        Raises:
            RepetitionError: it must not leave.
            TamperingError: what is there isn't as it was left.
        """
        if sanitised is not None:
            self._add_digest(sanitised)
        if not traces:
            return
        number, head, earlier = self._read()
        # An update that left before, bit by bit, tells nothing new, and is not compared with itself.
        others = [trace for trace in earlier if trace.digest != traces[0].digest]
        problem = repetition(traces[0], others)
        if problem is not None:
            raise RepetitionError(problem)
        if len(others) < len(earlier):
            return
        for trace in traces:
            number += 1
            stored = self._encrypted(trace.packed())
            before, head = head, self._mac(number, head, stored)
            self._database.execute("INSERT INTO noise VALUES (?, ?, ?, ?)", (number, before, stored, head))
        self._database.execute("DELETE FROM noise WHERE place <= ?", (number - TRACES,))
        self._database.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?)", (NEWEST, head))

    def problems(self) -> list[str]:
        """What is wrong with all of it, one sentence each."""
        if not read_rows(self._database, "SELECT 1 FROM sqlite_master WHERE name = 'noise'"):
            return ["its traces of noise are missing"] if self._digest(NEWEST) else []
        problems = []
        try:
            self._last, self._head = 0, b""
            self._traces.clear()
            self._read()
        except TamperingError as error:
            problems.append(str(error))
        numbers = {row[0] for row in read_rows(self._database, "SELECT DISTINCT bucket FROM sanitised")}
        sealed = read_rows(self._database, "SELECT number FROM buckets WHERE number >= ?", FIRST_BUCKET)
        numbers |= {row[0] for row in sealed}
        if any(self._digest(number) != self._mac_of_bucket(number) for number in numbers):
            problems.append("digests of sanitised updates were changed or removed")
        return problems

    def _read(self) -> tuple[int, bytes, list[Trace]]:
        """Number and MAC of the newest row, and all traces; rows that this object has read stay as they were."""
        newest = self._digest(NEWEST) or b""
        query = "SELECT place, before, trace, mac FROM noise WHERE place > ? ORDER BY place"
        rows = read_rows(self._database, query, self._last)
        last, head = self._last, self._head
        if rows:
            first = rows[0][0]
            if first != max(last + 1, rows[-1][0] - TRACES + 1):
                raise self._broken("traces of noise were removed")
            if first != last + 1:
                head = rows[0][1]
        for number, before, stored, mac in rows:
            if number not in (last + 1, rows[0][0]) or before != head or mac != self._mac(number, before, stored):
                raise self._broken("a trace of noise was changed or removed")
            last, head = number, mac
        if head != newest:
            raise self._broken("traces of noise were changed or removed")
        self._traces.extend(Trace.unpacked(self._mixed(row[2][:NONCE], row[2][NONCE:])) for row in rows)
        self._last, self._head = last, head
        return last, head, list(self._traces)

    def _add_digest(self, digest: bytes) -> None:
        number = FIRST_BUCKET + digest[0] % BUCKETS
        if self._digest(number) != self._mac_of_bucket(number):
            raise self._broken("digests of sanitised updates were changed or removed")
        if self.was_sanitised(digest):
            raise RepetitionError(SECOND_DRAW)
        last = read_rows(self._database, "SELECT MAX(place) FROM sanitised WHERE bucket = ?", number)[0][0] or 0
        self._database.execute("INSERT INTO sanitised VALUES (?, ?, ?)", (number, last + 1, digest))
        self._database.execute("DELETE FROM sanitised WHERE bucket = ? AND place <= ?", (number, last + 1 - PER_BUCKET))
        self._database.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?)", (number, self._mac_of_bucket(number)))

    def _mac_of_bucket(self, number: int) -> bytes | None:
        rows = read_rows(self._database, "SELECT place, digest FROM sanitised WHERE bucket = ? ORDER BY place", number)
        parts = [str(place).encode() + b":" + _bytes(digest) for place, digest in rows]
        return mac_of(self._key, b"sanitised", str(number).encode(), *parts) if rows else None

    def _mac(self, place: int, before: Any, stored: Any) -> bytes:
        return mac_of(self._key, b"trace", str(place).encode(), _bytes(before), _bytes(stored))

    def _encrypted(self, content: bytes) -> bytes:
        nonce = secrets.token_bytes(NONCE)
        return nonce + self._mixed(nonce, content)

    def _mixed(self, nonce: bytes, content: bytes) -> bytes:
        """Content encrypted, or decrypted, with the keystream of a nonce that is used once."""
        stream = hashlib.shake_256(mac_of(self._key, b"stream", nonce)).digest(len(content))
        return (np.frombuffer(content, np.uint8) ^ np.frombuffer(stream, np.uint8)).tobytes()

    def _digest(self, number: int) -> bytes | None:
        rows = read_rows(self._database, "SELECT digest FROM buckets WHERE number = ?", number)
        return _bytes(rows[0][0]) if rows else None


def _bytes(value: object) -> bytes:
    """A column that should hold bytes, where somebody may have written anything."""
    return value if isinstance(value, bytes) else repr(value).encode()
