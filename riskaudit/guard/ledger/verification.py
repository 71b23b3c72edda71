"""What is wrong with a whole ledger: its rows, their MACs, and what a log tells of it; one sentence each."""

from __future__ import annotations

import sqlite3
from typing import Any

from riskaudit.guard.keys import TamperingError
from riskaudit.guard.ledger.accounts import flaws_of
from riskaudit.guard.ledger.seal import Round, Seal, bucket_of
from riskaudit.guard.ledger.tables import COLUMNS, read_account
from riskaudit.guard.log import AuditLog, Position


def impossible_rows(database: sqlite3.Connection) -> list[str]:
    """What SQLite says of the file, and rows that no sequence of uploads can have left."""
    found = [f"SQLite says: {row[0]}" for row in _all(database, "PRAGMA integrity_check") if row[0] != "ok"]
    for (identifier,) in _all(database, "SELECT id FROM samples"):
        account = read_account(database, str(identifier))
        found += [] if account is None else [f"sample {identifier}: {text}" for text in flaws_of(account)]
    stray = "SELECT id, last_round FROM samples WHERE last_round NOT IN (SELECT number FROM rounds)"
    found += [f"sample {row[0]} was last written in round {row[1]}, which isn't there" for row in _all(database, stray)]
    total = _all(database, "SELECT COUNT(*) FROM rounds")[0][0]
    many = _all(database, "SELECT id, rounds FROM samples WHERE rounds > ?", total)
    return found + [f"sample {row[0]} counts {row[1]} rounds, and the ledger {total}" for row in many]


def unsealed_rows(database: sqlite3.Connection, seal: Seal) -> list[str]:
    """Rounds, buckets and samples whose MACs don't fit."""
    found = seal.problems()
    for row in _all(database, f"SELECT {COLUMNS}, mac, bucket FROM samples"):
        if seal.row(row[:-2]) != row[-2] or row[-1] != bucket_of(str(row[0])):
            found.append(f"sample {row[0]} isn't as it was written: its MAC doesn't fit")
    return found


def contradictions(identity: str, rounds: list[tuple[Round, bytes]], log: AuditLog) -> list[str]:
    """Where a log tells of other rounds than the ledger of this identity has, and the other way round."""
    heads = {each.number: (each, mac.hex()) for each, mac in rounds}
    lines, found = {}, []
    for entry in log.entries():
        lines[entry.get("number")] = (entry.get("log"), entry.get("hash"))
        told = entry.get("ledger") or {}
        number = told.get("round")
        if told.get("identity") != identity or not number:
            continue
        if number not in heads:
            found.append(f"line {entry.get('number')} of the log tells of round {number}, which isn't there")
        elif heads[number][1] != told.get("head"):
            found.append(f"line {entry.get('number')} of the log tells of another round {number}")
    identities = {name for name, _ in lines.values()}
    for number, (each, _) in heads.items():
        known = each.log in identities and each.log_number
        if known and lines.get(each.log_number) != (each.log, each.log_head):
            found.append(f"round {number} tells of a line {each.log_number} that the log doesn't have")
    logged = [each for each, _ in heads.values() if each.log]
    if logged and not any(each.log in identities for each, _ in heads.values()):
        found.append("no line of the log belongs to it: it is the log of another ledger")
    return found


def refuse_contradiction(seal: Seal, identity: str, state: tuple[int, str], log: Position, name: str) -> None:
    """Hold a ledger at its last round against where the log stands.

    Args:
        seal: of the ledger.
        identity: of the ledger.
        state: number and MAC of its last round.
        log: where the log stands.
        name: of the ledger's file.

    Raises:
        TamperingError: one tells of what the other doesn't have.
    """
    if log.ledger is not None and log.ledger[0] == identity and log.ledger[1]:
        _, number, head = log.ledger
        found = seal.rounds(f"WHERE number = {int(number)}")
        if number > state[0] or not found or found[0][1].hex() != head:
            raise seal.broken(f"the log tells of a round {number} that it doesn't have")
    last = seal.last_of_log(log.identity) if log.identity else None
    if last is None:
        return
    if last.log_number > log.number or (last.log_number == log.number and last.log_head != log.head):
        raise TamperingError(
            f"the log isn't as the guard left it: the ledger {name} tells of line {last.log_number}, and it ends at "
            f"{log.number}; put the newest copy back, or start over on purpose with riskaudit log reset"
        )


def _all(database: sqlite3.Connection, query: str, *values: object) -> list[tuple[Any, ...]]:
    return database.execute(query, values).fetchall()
