"""What is wrong with a whole ledger: its rows, their MACs, and what a log tells of it; one sentence each."""

from __future__ import annotations

import sqlite3

from riskaudit.guard.keys import State, TamperingError
from riskaudit.guard.ledger.accounts import flaws_of
from riskaudit.guard.ledger.seal import Seal, bucket_of, head_of, read_rows
from riskaudit.guard.ledger.tables import COLUMNS, read_accounts
from riskaudit.guard.log import AuditLog, Line


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


def contradictions(identity: str, seal: Seal, log: AuditLog) -> list[str]:
    """Where a log tells of other rounds than the ledger of this identity has, and the other way round."""
    rounds = {row["number"]: row for row in seal.rounds("ORDER BY number")}
    lines, problems = {}, []
    for entry in log.entries():
        lines[entry.get("number")] = (entry.get("log"), entry.get("hash"))
        ledger = entry.get("ledger") or {}
        number = ledger.get("round")
        if ledger.get("identity") != identity or not number:
            continue
        if number not in rounds:
            problems.append(f"line {entry.get('number')} of the log tells of round {number}, which isn't there")
        elif head_of(rounds[number]) != ledger.get("head"):
            problems.append(f"line {entry.get('number')} of the log tells of another round {number}")
    logs = {name for name, _ in lines.values()}
    for number, row in rounds.items():
        comparable = row["log"] in logs and row["log_number"]
        if comparable and lines.get(row["log_number"]) != (row["log"], row["log_head"]):
            problems.append(f"round {number} tells of a line {row['log_number']} that the log doesn't have")
    logged = {row["log"] for row in rounds.values() if row["log"]}
    if logged and not logged & logs:
        problems.append("no line of the log belongs to it: it is the log of another ledger")
    return problems


def refuse_contradiction(seal: Seal, identity: str, state: State, log: Line, name: str) -> None:
    """Hold a ledger at its last round, which has this state, against the last line of a log.

    Raises:
        TamperingError: one tells of what the other doesn't have.
    """
    named = log.get("ledger") or {}
    if named.get("identity") == identity and named["round"]:
        number = int(named["round"])
        rounds = seal.rounds(f"WHERE number = {number}")
        if number > state[0] or not rounds or head_of(rounds[0]) != named["head"]:
            raise seal.broken(f"the log tells of a round {number} that it doesn't have")
    last = seal.last_of_log(log["log"]) if log["log"] else None
    if last is None:
        return
    number, head = last["log_number"], last["log_head"]
    if number > log["number"] or (number == log["number"] and head != log["hash"]):
        raise TamperingError(
            f"the log isn't as the guard left it: the ledger {name} tells of line {number}, and it ends at "
            f"{log['number']}; put the newest copy back, or start over on purpose with riskaudit log reset"
        )
