"""What has left about each sample, over all rounds, in a file that notices when it is changed.

`riskaudit.guard.ledger.accounts` has the sums and why they are upper ends. The file is local and private: an account's
directions say what a gradient sees of a sample. It is SQLite in WAL mode, so a kill leaves the last whole state, and
several processes may share it. Everything in it is under keyed MACs (`riskaudit.guard.ledger.seal`), whose key and
counter lie elsewhere (`riskaudit.guard.keys`).
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from riskaudit.errors import GuardError
from riskaudit.formatting import count
from riskaudit.guard.keys import GENESIS, KeyFolder, State, TamperingError
from riskaudit.guard.ledger.accounts import Account, flaws_of, shrinks
from riskaudit.guard.ledger.noise import NoiseRecords
from riskaudit.guard.ledger.seal import ROUND_COLUMNS, Seal, read_rows
from riskaudit.guard.ledger.tables import (
    COLUMNS,
    SCHEMA,
    account_of,
    create_tables,
    read_accounts,
    refuse_forgetting,
    write_account,
)
from riskaudit.guard.ledger.verification import contradictions, impossible_rows, refuse_contradiction, unsealed_rows
from riskaudit.guard.log import START, AuditLog, Line
from riskaudit.guard.noise.traces import Trace

# Seconds that a writer waits for another one.
PATIENCE = 10.0


class Ledger:
    """The file; safe to share between processes on one machine, one object per process and thread.

    Args:
        path: made where it doesn't exist, readable by its owner only.
        read_only: change nothing, and expect a ledger there.
        keys: folder of the key and the counters; see `riskaudit.guard.keys` for the default.

    Attributes:
        identity: random name of this ledger.
        salt: connects names of samples with their ids here.
        state: number and MAC of the last round that this object has seen.
        noise: traces of the noise that left.

    Raises:
        GuardError: it can't be made or read, or is something else.
        TamperingError: a file that belongs here is missing or is another one.
    """

    def __init__(
        self, path: str | Path, *, read_only: bool = False, keys: KeyFolder | str | Path | None = None
    ) -> None:
        self.path = Path(path)
        self.keys = keys if isinstance(keys, KeyFolder) else KeyFolder(keys)
        self.state: State = (0, GENESIS)
        # The accounts of the round that goes on, each under the MAC that it was checked with.
        self._seen: dict[str, tuple[bytes, Account]] = {}
        self._database: sqlite3.Connection
        refuse_forgetting(path)
        try:
            if read_only:
                address = f"file:{quote(str(self.path.absolute()))}?mode=ro"
                self._database = sqlite3.connect(address, uri=True, timeout=PATIENCE, isolation_level=None)
                self._recognise()
            else:
                self.keys.refuse_neighbour(self.path)
                with self.keys.locked(self.path):
                    self._open()
        except BaseException as error:
            if hasattr(self, "_database"):
                self.close()
            if isinstance(error, sqlite3.Error | OSError):
                raise self._unusable(error) from error
            raise

    def _open(self) -> None:
        """Open the file for writing; tables are made in a new or an empty file only."""
        expected = self.keys.identity_at(self.path)
        rounds = self.keys.number(expected)
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
        self._file = _identity_of(self.path)
        self._database = sqlite3.connect(self.path.absolute(), timeout=PATIENCE, isolation_level=None)
        if not self._all("SELECT name FROM sqlite_master"):
            identity = self._make()
            if not rounds:
                self.keys.set_identity(self.path, identity)
                expected = identity
        self._recognise()
        self.noise.make()
        if expected is None and self.keys.states(self.identity) is not None:
            # A ledger that this user's guard made, at a new place.
            self.keys.set_identity(self.path, self.identity)
        elif expected is not None and expected != self.identity:
            raise TamperingError(
                f"the ledger {self.path.name} was deleted or replaced after {count(rounds, 'round')}; put it back, or "
                "start over on purpose with riskaudit ledger reset"
            )
        self._database.execute("PRAGMA synchronous=FULL")

    def _make(self) -> str:
        """Tables in an empty file, and its counter before them; returns the new identity."""
        identity = secrets.token_hex(8)
        self.keys.derived(b"", create=True)
        self.keys.set_counter(identity)
        self._database.execute("PRAGMA journal_mode=WAL")
        with self._transaction():
            create_tables(self._database, (("salt", secrets.token_bytes(32)), ("identity", identity)))
        return identity

    def _recognise(self) -> None:
        """Read what the file says about itself."""
        meta = dict(self._all("SELECT name, value FROM meta"))
        schema, self.salt = meta.get("schema"), meta.get("salt", b"")
        if schema != SCHEMA or not isinstance(self.salt, bytes) or not self.salt:
            raise GuardError(
                f"expected a ledger of schema {SCHEMA} in {self.path.name}, found {schema}; choose another file, which "
                "starts at zero"
            )
        self.identity = str(meta.get("identity"))
        key, noise_key = (
            self.keys.derived(purpose, self.identity.encode(), self.salt, create=False)
            for purpose in (b"ledger", b"noise")
        )
        self._seal = Seal(self._database, key or b"", self.path.name)
        self.noise = NoiseRecords(self._database, noise_key or b"", self._seal.broken)
        self._has_key = key is not None

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    @property
    def position(self) -> dict[str, object]:
        """The last round that this object has seen, for a line of the log."""
        return {"identity": self.identity, "round": self.state[0], "head": self.state[1]}

    def accounts(self, ids: Sequence[str], log: Line | None = None) -> dict[str, Account]:
        """The accounts of these samples that exist, once they are seen to be as they were written.

        Args:
            ids: hidden.
            log: last line of the guard's log, to compare.

        Raises:
            TamperingError: the ledger isn't as it was left, or contradicts the log.
        """
        self._seen.clear()
        with self._usable(), self.keys.locked(self.path), self._transaction():
            self._refuse_tampering(ids, log)
            rows = ((identifier, self._checked_row(identifier)) for identifier in ids)
            return {identifier: account for identifier, account in rows if account is not None}

    def record(
        self,
        before: dict[str, Account],
        after: dict[str, Account],
        update_digest: str,
        log: Line | None = None,
        traces: Sequence[Trace] = (),
        sanitised: bytes | None = None,
    ) -> int | None:
        """Write a round that leaves, before it leaves.

        Args:
            before: the accounts that the round was computed from, by id; an id that is missing had none.
            after: all accounts of the round.
            update_digest: of what leaves.
            log: last line of the guard's log.
            traces: of the round's noise, to be held against earlier ones; see `NoiseRecords.add`.
            sanitised: see `NoiseRecords.add`.

        Returns:
            The round's number; None, and nothing is written, where somebody else's round came in between.

        Raises:
            GuardError: the file can't be written, or an account can't be one.
            TamperingError: the ledger isn't as it was left.
            RepetitionError: the round's noise left before, or it is a second draw.
        """
        log = log or START
        with self._usable(), self.keys.locked(self.path):
            with self._transaction():
                state = self._refuse_tampering(after, None)
                if not self._follows(before, after):
                    return None
                number, created = state[0] + 1, datetime.now(UTC).isoformat(timespec="seconds")
                for identifier, account in after.items():
                    write_account(self._database, self._seal, identifier, account, number)
                self.noise.add(traces, sanitised)
                row = (number, created, len(after), update_digest, log["log"], log["number"], log["hash"])
                head = self._seal.write(row, state[1], after)
                # A kill between this and the next counter leaves either state, and nothing was handed out.
                self.keys.set_counter(self.identity, state, announced=(number, head))
            self.keys.set_counter(self.identity, (number, head))
            self.state = (number, head)
        return number

    def was_sanitised(self, digest: bytes) -> bool:
        """Whether a round sanitised the update of this keyed digest (`riskaudit.guard.ledger.noise`).

        Raises:
            GuardError: the file can't be read.
        """
        with self._usable():
            return self.noise.was_sanitised(digest)

    @property
    def num_rounds(self) -> int:
        """Rounds recorded."""
        return int(self._all("SELECT COUNT(*) FROM rounds")[0][0])

    def every_account(self) -> Iterator[tuple[str, Account]]:
        """All samples, the most exposed first, as the file has them."""
        yield from sorted(read_accounts(self._database), key=lambda pair: (-pair[1].revealed, pair[0]))

    def rounds(self) -> list[dict[str, object]]:
        """All rounds, for an export."""
        names = ("round", *ROUND_COLUMNS[1:4])
        with self._usable():
            return [dict(zip(names, row, strict=False)) for row in self._seal.rounds("ORDER BY number")]

    def problems(self, log: AuditLog | None = None) -> list[str]:
        """What is wrong with the file, one sentence each; empty where it is whole.

        Args:
            log: of the guard, to compare.
        """
        try:
            problems = impossible_rows(self._database) + self._unsealed()
            if log is not None:
                problems += contradictions(self.identity, self._seal, log)
        except (GuardError, sqlite3.Error, ValueError, TypeError, KeyError) as error:
            return [f"it can't be read: {error}"]
        return problems

    def _unsealed(self) -> list[str]:
        """What MACs and counter say about the whole file."""
        if not self._has_key:
            return [f"its key isn't in {self.keys.path}, so nobody can say whether it is as the guard left it"]
        problems = unsealed_rows(self._database, self._seal) + self.noise.problems()
        if self.keys.identity_at(self.path) not in (None, self.identity):
            problems.append("it isn't the ledger that belongs here: that was deleted or replaced")
        try:
            with self.keys.locked(self.path, create=False):
                self._refuse_rollback(self._seal.last())
        except TamperingError as error:
            problems.append(str(error))
        return problems

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

    def _refuse_tampering(self, ids: Iterable[str], log: Line | None) -> State:
        """Check the last round, the counter, the log's word and the buckets of some ids; returns the state."""
        if not self._has_key or self.keys.states(self.identity) is None:
            raise TamperingError.keyless("ledger", self.path.name, self.keys.path)
        if _identity_of(self.path) != self._file:
            raise self._seal.broken("the file was replaced while it was open")
        state = self._seal.last()
        self._refuse_rollback(state)
        if log is not None:
            refuse_contradiction(self._seal, self.identity, state, log, self.path.name)
        self._seal.refuse_changed(ids)
        self.state = state
        return state

    def _refuse_rollback(self, state: State) -> None:
        states = self.keys.states(self.identity)
        if states is None:
            raise self._seal.broken(f"its counter isn't in {self.keys.path}")
        if state not in states:
            raise self._seal.broken(f"it is at round {state[0]}, and the counter at {states[0][0]}")

    def _follows(self, before: dict[str, Account], after: dict[str, Account]) -> bool:
        """Whether the accounts are still those that a round was computed from."""
        for identifier, new in after.items():
            now, earlier = self._checked_row(identifier), before.get(identifier)
            if (now is None) != (earlier is None) or (now and earlier and now.rounds != earlier.rounds):
                return False
            wrong = next(flaws_of(new), "its sums shrink" if now is not None and shrinks(now, new) else None)
            if wrong is not None:
                raise GuardError(f"the ledger can't take an account of which {wrong}; review the batch again")
        return True

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, and nobody else writes meanwhile."""
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:
            yield

    def _checked_row(self, identifier: str) -> Account | None:
        """A row whose bucket was checked."""
        rows = self._all(f"SELECT {COLUMNS}, mac FROM samples WHERE id = ?", identifier)
        listed = self._seal.mac_in_bucket(identifier)
        if not rows and listed is None:
            return None
        if not rows or rows[0][-1] != listed or self._seal.row(rows[0][:-1]) != listed:
            raise self._seal.broken("a sample of this batch was changed")
        seen = self._seen.get(identifier)
        if seen is not None and seen[0] == listed:
            return seen[1]
        account = account_of(rows[0][1:-2])
        wrong = next(flaws_of(account), None)
        if wrong is not None:
            raise self._seal.broken(f"of a sample of this batch, {wrong}")
        self._seen[identifier] = (listed, account)
        return account

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._usable():
            return read_rows(self._database, query, *values)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Errors of SQLite, and of columns that hold something else, as those of this file."""
        try:
            yield
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> GuardError:
        # A file that is busy, full or read-only is no sign of tampering; one that lost its tables is.
        kind = GuardError if isinstance(error, sqlite3.OperationalError | OSError) else TamperingError
        kind = TamperingError if "no such" in str(error) else kind
        return kind(f"the ledger {self.path.name} can't be used ({error}); repair it or choose another place")


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
