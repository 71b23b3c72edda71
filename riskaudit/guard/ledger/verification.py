"""What is wrong with a whole ledger: its rows, their MACs, and what a log tells of it; one sentence each."""

from __future__ import annotations

import sqlite3

from riskaudit.guard.keys import TamperingError
from riskaudit.guard.ledger.accounts import flaws_of
from riskaudit.guard.ledger.seal import Round, Seal, bucket_of
from riskaudit.guard.ledger.tables import COLUMNS, read_accounts, read_rows
from riskaudit.guard.log import AuditLog, Position


def impossible_rows(database: sqlite3.Connection) -> list[str]:
    """What SQLite says of the file, and rows that no sequence of uploads can have left."""
    integrity = read_rows(database, "PRAGMA integrity_check")
    problems = [f"SQLite says: {row[0]}" for row in integrity if row[0] != "ok"]
    for identifier, account in read_accounts(database):
        problems += [f"sample {identifier}: {flaw}" for flaw in flaws_of(account)]
    stray = "SELECT id, last_round FROM samples WHERE last_round NOT IN (SELECT number FROM rounds)"
    for identifier, number in read_rows(database, stray):
        problems.append(f"sample {identifier} was last written in round {number}, which isn't there")
    total = read_rows(database, "SELECT COUNT(*) FROM rounds")[0][0]
    many = read_rows(database, "SELECT id, rounds FROM samples WHERE rounds > ?", total)
    return problems + [f"sample {row[0]} counts {row[1]} rounds, and the ledger {total}" for row in many]


def unsealed_rows(database: sqlite3.Connection, seal: Seal) -> list[str]:
    """Rounds, buckets and samples whose MACs don't fit."""
    problems = seal.problems()
    for row in read_rows(database, f"SELECT {COLUMNS}, mac, bucket FROM samples"):
        if seal.row(row[:-2]) != row[-2] or row[-1] != bucket_of(str(row[0])):
            problems.append(f"sample {row[0]} isn't as it was written: its MAC doesn't fit")
    return problems


def contradictions(identity: str, rounds: list[tuple[Round, bytes]], log: AuditLog) -> list[str]:
    """Where a log tells of other rounds than the ledger of this identity has, and the other way round."""
    heads = {each.number: (each, mac.hex()) for each, mac in rounds}
    lines, problems = {}, []
    for entry in log.entries():
        lines[entry.get("number")] = (entry.get("log"), entry.get("hash"))
        ledger = entry.get("ledger") or {}
        number = ledger.get("round")
        if ledger.get("identity") != identity or not number:
            continue
        if number not in heads:
            problems.append(f"line {entry.get('number')} of the log tells of round {number}, which isn't there")
        elif heads[number][1] != ledger.get("head"):
            problems.append(f"line {entry.get('number')} of the log tells of another round {number}")
    identities = {name for name, _ in lines.values()}
    for number, (each, _) in heads.items():
        comparable = each.log in identities and each.log_number
        if comparable and lines.get(each.log_number) != (each.log, each.log_head):
            problems.append(f"round {number} tells of a line {each.log_number} that the log doesn't have")
    logged = [each for each, _ in heads.values() if each.log]
    if logged and not any(each.log in identities for each, _ in heads.values()):
        problems.append("no line of the log belongs to it: it is the log of another ledger")
    return problems


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
        rounds = seal.rounds(f"WHERE number = {int(number)}")
        if number > state[0] or not rounds or rounds[0][1].hex() != head:
            raise seal.broken(f"the log tells of a round {number} that it doesn't have")
    last = seal.last_of_log(log.identity) if log.identity else None
    if last is None:
        return
    if last.log_number > log.number or (last.log_number == log.number and last.log_head != log.head):
        raise TamperingError(
            f"the log isn't as the guard left it: the ledger {name} tells of line {last.log_number}, and it ends at "
            f"{log.number}; put the newest copy back, or start over on purpose with riskaudit log reset"
        )
