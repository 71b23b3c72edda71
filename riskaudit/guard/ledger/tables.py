"""A ledger's file: where it may lie, how it is put aside, its tables, and one account as a row of them."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from riskaudit.errors import GuardError
from riskaudit.guard.ledger.accounts import Account
from riskaudit.guard.ledger.seal import Seal, bucket_of, read_rows

SCHEMA = 2
# Of the names of a ledger and of what SQLite keeps beside it.
ENDINGS = ("", "-wal", "-shm")
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    number INTEGER PRIMARY KEY, created_at TEXT NOT NULL, num_samples INTEGER NOT NULL, update_digest TEXT NOT NULL,
    log TEXT NOT NULL, log_number INTEGER NOT NULL, log_head TEXT NOT NULL, root BLOB NOT NULL, mac BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_log ON rounds (log, number);
CREATE TABLE IF NOT EXISTS samples (
    id TEXT PRIMARY KEY, rounds INTEGER NOT NULL, dimension INTEGER NOT NULL, tau REAL NOT NULL,
    summed REAL NOT NULL, trace REAL NOT NULL, directions BLOB NOT NULL, core BLOB NOT NULL,
    last_round INTEGER NOT NULL, bucket INTEGER NOT NULL, mac BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_bucket ON samples (bucket, id, mac);
CREATE TABLE IF NOT EXISTS buckets (number INTEGER PRIMARY KEY, digest BLOB NOT NULL);
"""
# What a sample's MAC covers.
COLUMNS = "id, rounds, dimension, tau, summed, trace, directions, core, last_round"


def create_tables(database: sqlite3.Connection, meta: Iterable[tuple[str, object]]) -> None:
    """Make the tables in a new file, with what it says about itself."""
    for statement in _TABLES.split(";"):
        database.execute(statement)
    database.executemany("INSERT INTO meta VALUES (?, ?)", (("schema", SCHEMA), *meta))


def read_accounts(database: sqlite3.Connection) -> Iterator[tuple[str, Account]]:
    """All accounts by their hidden ids, as the file has them."""
    yield from ((str(row[0]), account_of(row[1:-1])) for row in read_rows(database, f"SELECT {COLUMNS} FROM samples"))


def account_of(row: Sequence[Any]) -> Account:
    """The account in a row's columns from ``rounds`` to ``core``."""
    rounds, dimension, tau, summed, trace, directions, core = row
    directions = np.frombuffer(directions, dtype=np.float32).astype(np.float64).reshape(-1, dimension)
    core = np.frombuffer(core, dtype=np.float64).reshape(len(directions), len(directions))
    return Account(rounds, dimension, tau, summed, math.inf if trace is None else trace, directions, core)


def write_account(database: sqlite3.Connection, seal: Seal, identifier: str, account: Account, number: int) -> None:
    """Write an account with its MAC, as of round ``number``."""
    sums = float(account.tau), float(account.summed), float(account.trace)
    arrays = account.directions.astype(np.float32).tobytes(), account.core.tobytes()
    values = (identifier, account.rounds, account.dimension, *sums, *arrays, number)
    database.execute(
        "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, bucket_of(identifier), seal.row(values)),
    )


def refuse_forgetting(path: str | Path) -> None:
    """Refuse names that SQLite takes as a database in memory, or that are no place for a file.

    Raises:
        GuardError: it is one.
    """
    name, file = str(path), Path(path)
    if not name.strip() or name.startswith(":") or name.lower().startswith("file:"):
        raise GuardError(
            f"expected a file for the ledger, found {name!r}: a ledger in memory forgets what has left; name a file"
        )
    if file.exists() and not file.is_file():
        raise GuardError(f"expected a file for the ledger, found {name!r}, which is none; name a file")
