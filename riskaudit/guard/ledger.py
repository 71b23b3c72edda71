"""What has left about each sample, over all rounds: Fisher information adds up.

After uploads t = 1..n with noise std s_t on sample i's own release, F = sum_t J_t^T J_t / s_t^2, and the share of the
input revealed by all of them together is sum_j l_j(F) / (l_j(F) + 1/tau^2) / d (THEORY, section 2, with F in the
place of H / sigma^2). F itself, d x d, isn't kept. Per sample there are

- Q, k orthonormal directions [k, d] fixed at its first upload, and C = sum_t Q J_t^T J_t Q^T / s_t^2, exact,
- T, an upper end of tr F,
- D, the sum of the upper ends of every round's effective dimension.

[derived] f(x) = x / (x + 1/tau^2) is concave and f(0) = 0, so tr f of a block-diagonal part of F is at least
tr f(F) (its eigenvalues are majorised by F's), hence tr f(F) <= tr f(C) + (d - k) f((T - tr C) / (d - k)). And
tr f(A + B) <= tr f(A) + tr f(B) for positive semidefinite A and B (Rotfel'd, 1969), hence tr f(F) <= D. The smaller
end counts. Both hold with the confidence of the rounds' own ends.

The file is local and private: Q are directions in the space of the inputs that say what a gradient sees of a sample.
It is SQLite in WAL mode, so a kill leaves the last whole state, and several processes may share it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from riskaudit.errors import GuardError

Array = npt.NDArray[np.float64]

SCHEMA = 1
# Seconds that a writer waits for another one.
PATIENCE = 10.0
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    number INTEGER PRIMARY KEY AUTOINCREMENT, created_at TEXT NOT NULL, num_samples INTEGER NOT NULL,
    update_digest TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS samples (
    id TEXT PRIMARY KEY, rounds INTEGER NOT NULL, dimension INTEGER NOT NULL, tau REAL NOT NULL,
    summed REAL NOT NULL, trace REAL NOT NULL, directions BLOB NOT NULL, core BLOB NOT NULL, last_round INTEGER NOT NULL
);
"""


@dataclass(frozen=True, eq=False)
class Account:
    """What has left about one sample so far; see the module.

    Attributes:
        rounds: uploads that it was part of.
        dimension: d.
        tau: the prior's std, data units.
        summed: D.
        trace: T, 1 / data units squared.
        directions: Q, [k, d], orthonormal rows.
        core: C, [k, k], 1 / data units squared.
    """

    rounds: int
    dimension: int
    tau: float
    summed: float
    trace: float
    directions: Array
    core: Array

    @classmethod
    def empty(cls, dimension: int, tau: float, directions: Array) -> Account:
        """Before the first upload; ``directions`` [k, d] as they will be kept, in float32."""
        count = len(directions)
        kept = directions.astype(np.float32).astype(np.float64)
        return cls(0, dimension, tau, 0.0, 0.0, kept, np.zeros((count, count)))

    def after(self, entry: Entry) -> Account:
        """With one more upload."""
        return Account(
            self.rounds + 1,
            self.dimension,
            self.tau,
            self.summed + entry.effective_dimension,
            self.trace + entry.trace,
            self.directions,
            self.core + entry.core,
        )

    @property
    def revealed(self) -> float:
        """Upper end of the share of the input that all uploads together reveal."""
        eps, count = 1 / self.tau**2, len(self.core)
        values = np.maximum(np.linalg.eigvalsh(self.core), 0.0) if count else np.zeros(0)
        most = float(np.sum(values / (values + eps)))
        remaining = self.dimension - count
        if remaining:
            rest = max(0.0, self.trace - float(values.sum()))
            most += remaining * (rest / (rest + remaining * eps) if math.isfinite(rest) else 1.0)
        return min(1.0, min(most, self.summed) / self.dimension)

    @property
    def rmse(self) -> float:
        """Lower end of the posterior error after all uploads, data units per input coordinate."""
        return self.tau * math.sqrt(max(0.0, 1 - self.revealed))


@dataclass(frozen=True, eq=False)
class Entry:
    """One upload's part, in the sample's own directions.

    Attributes:
        effective_dimension: upper end of this upload's own.
        trace: upper end of tr J^T J / s^2.
        core: Q J^T J Q^T / s^2, [k, k].
    """

    effective_dimension: float
    trace: float
    core: Array


class Ledger:
    """The file; safe to share between processes on one machine, one object per process and thread.

    Args:
        path: made where it doesn't exist, readable by its owner only.
        read_only: change nothing, and expect a ledger there.

    Raises:
        GuardError: it can't be made or read, or is something else.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        try:
            if read_only:
                place = f"file:{quote(str(self.path.absolute()))}?mode=ro"
                self._database = sqlite3.connect(place, uri=True, timeout=PATIENCE, isolation_level=None)
            else:
                self._open()
            self._salt: bytes = self._meta("salt")
            schema = self._meta("schema")
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error
        if schema != SCHEMA or not self._salt:
            raise GuardError(f"expected a ledger of schema {SCHEMA} in {self.path.name}, found {schema}")

    def _open(self) -> None:
        """For writing; tables are made in a new or an empty file only."""
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
        self._database = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        if not self._all("SELECT name FROM sqlite_master"):
            self._database.execute("PRAGMA journal_mode=WAL")
            with self._transaction():
                for statement in _TABLES.split(";"):
                    self._database.execute(statement)
                self._database.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (SCHEMA,))
                self._database.execute("INSERT OR IGNORE INTO meta VALUES ('salt', ?)", (secrets.token_bytes(32),))
        self._database.execute("PRAGMA synchronous=FULL")

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def hidden(self, name: str) -> str:
        """A sample's id in the ledger: 16 hexadecimal characters, which only this file's salt connects to its name."""
        return hide(name, self._salt)

    def accounts(self, ids: Sequence[str]) -> dict[str, Account]:
        """Those that exist."""
        try:
            rows = (self._row(identifier) for identifier in ids)
            return {identifier: row for identifier, row in zip(ids, rows, strict=True) if row is not None}
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def record(self, before: dict[str, Account], after: dict[str, Account], update_digest: str) -> int | None:
        """Write a round that leaves, before it leaves.

        Args:
            before: the accounts that the round was computed from, by id; an id that is missing had none.
            after: all accounts of the round.
            update_digest: of what leaves.

        Returns:
            The round's number; None, and nothing is written, where somebody else's round came in between.

        Raises:
            GuardError: the file can't be written.
        """
        try:
            with self._transaction():
                for identifier in after:
                    now, known = self._row(identifier), before.get(identifier)
                    if (now is None) != (known is None) or (now and known and now.rounds != known.rounds):
                        return None
                cursor = self._database.execute(
                    "INSERT INTO rounds (created_at, num_samples, update_digest) VALUES (?, ?, ?)",
                    (datetime.now(UTC).isoformat(timespec="seconds"), len(after), update_digest),
                )
                number = int(cursor.lastrowid or 0)
                self._database.executemany(
                    "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        (
                            identifier, found.rounds, found.dimension, found.tau, found.summed, found.trace,
                            found.directions.astype(np.float32).tobytes(), found.core.tobytes(), number,
                        )
                        for identifier, found in after.items()
                    ],
                )  # fmt: skip
            return number
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    @property
    def num_rounds(self) -> int:
        """Rounds recorded."""
        return int(self._one("SELECT COUNT(*) FROM rounds"))

    def every_account(self) -> Iterator[tuple[str, Account]]:
        """All samples, the most exposed first."""
        ids = [str(row[0]) for row in self._all("SELECT id FROM samples")]
        found = self.accounts(ids)
        yield from sorted(found.items(), key=lambda pair: (-pair[1].revealed, pair[0]))

    def rounds(self) -> list[dict[str, object]]:
        """All rounds, for an export."""
        rows = self._all("SELECT number, created_at, num_samples, update_digest FROM rounds ORDER BY number")
        names = ("round", "created_at", "num_samples", "update_digest")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def problems(self) -> list[str]:
        """What is wrong with the file, one sentence each; empty where it is whole."""
        try:
            found = [f"SQLite says: {row[0]}" for row in self._all("PRAGMA integrity_check") if row[0] != "ok"]
            for (identifier,) in self._all("SELECT id FROM samples"):
                account = self._row(str(identifier))
                found += [] if account is None else [f"sample {identifier}: {text}" for text in _flaws(account)]
            found += [
                f"sample {row[0]} was last written in round {row[1]}, which isn't there"
                for row in self._all(
                    "SELECT id, last_round FROM samples WHERE last_round NOT IN (SELECT number FROM rounds)"
                )
            ]
        except (GuardError, sqlite3.Error, ValueError) as error:
            return [f"it can't be read: {error}"]
        return found

    def export(self) -> str:
        """Everything but the directions, as JSON."""
        samples = [
            {
                "id": identifier,
                "rounds": account.rounds,
                "revealed_at_most": account.revealed,
                "posterior_rmse_at_least": account.rmse,
                "prior_std": account.tau,
            }
            for identifier, account in self.every_account()
        ]
        return json.dumps({"schema": SCHEMA, "rounds": self.rounds(), "samples": samples}, indent=1) + "\n"

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, and nobody else writes meanwhile."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _row(self, identifier: str) -> Account | None:
        row = self._database.execute(
            "SELECT rounds, dimension, tau, summed, trace, directions, core FROM samples WHERE id = ?", (identifier,)
        ).fetchone()
        if row is None:
            return None
        rounds, dimension, tau, summed, trace, directions, core = row
        kept = np.frombuffer(directions, dtype=np.float32).astype(np.float64).reshape(-1, dimension)
        return Account(
            rounds, dimension, tau, summed, math.inf if trace is None else trace, kept,
            np.frombuffer(core, dtype=np.float64).reshape(len(kept), len(kept)),
        )  # fmt: skip

    def _meta(self, name: str) -> Any:
        return self._one("SELECT value FROM meta WHERE name = ?", name)

    def _one(self, query: str, *values: object) -> Any:
        rows = self._all(query, *values)
        return rows[0][0] if rows else None

    def _all(self, query: str, *values: object) -> list[tuple[object, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> GuardError:
        return GuardError(f"the ledger {self.path.name} can't be used ({error}); repair it or choose another place")


def hide(name: str, salt: bytes) -> str:
    """16 hexadecimal characters that only the salt connects to a name."""
    return hashlib.blake2b(name.encode("utf-8", "replace"), key=salt, digest_size=8).hexdigest()


def _flaws(account: Account) -> Iterator[str]:
    numbers = [account.tau, account.summed, *account.core.ravel(), *account.directions.ravel()]
    if not all(math.isfinite(number) for number in numbers):
        yield "it holds a number that isn't finite"
        return
    if account.rounds < 1 or account.tau <= 0 or account.summed < 0 or not account.trace >= 0:
        yield "a count, the prior or a sum is out of range"
    gram = account.directions @ account.directions.T
    if float(np.abs(gram - np.eye(len(gram))).max(initial=0.0)) > 1e-5:
        yield "its directions aren't orthonormal"
    if len(account.core) and float(np.linalg.eigvalsh(account.core)[0]) < -1e-6 * abs(float(np.trace(account.core))):
        yield "its sketch isn't positive semidefinite"
