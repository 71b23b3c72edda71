"""One line per sample for spreadsheets: value, interval and status of every proxy.

A spreadsheet runs a cell that starts with ``=``, ``+``, ``-`` or ``@`` as a formula, so such text
gets an apostrophe in front. Numbers stay numbers; an unknown one is an empty cell beside its status.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from riskaudit.formatting import target_text
from riskaudit.results import AuditResult, SampleRow
from riskaudit.results.checks import leaking_checks
from riskaudit.results.facts import Facts

# Of each column of a table: the number, the upper end of what is revealed, and the number's status.
COLUMN_PARTS = ("value", "revealed", "status")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")


def guarded(text: str) -> str:
    """``text`` as a spreadsheet shows it instead of running it."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA_STARTS) else text


def to_csv(result: AuditResult) -> bytes:
    """All samples in the order of the data, UTF-8, lines ended as RFC 4180 has it."""
    facts = Facts(result)
    parts = ("value", "low", "high", "status")
    header = ["id", "target", "class", "verdict", "status", "reason", "loss", "noise_std", "noise_target_rmse"]
    header += ["noise_status"]
    header += ["upload", "classmates", "copies"] if facts.is_joint else []
    header += [f"{proxy}_{part}" for proxy in facts.proxy_ids for part in parts]
    columns = [column for row in result.samples for column in row.columns]
    columns = list(dict.fromkeys(columns))
    header += [f"column {name} {part}" for name in columns for part in COLUMN_PARTS]
    header += ["checks"] if facts.result.checks else []
    # Only where intervals leave ranks open: of exact values the column says nothing new.
    header += ["ranks"] if facts.rank_ranges else []
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([guarded(name) for name in header])
    for row in result.samples:
        writer.writerow([_cell(value) for value in _values(facts, row, columns)])
    return stream.getvalue().encode()


def _cell(value: str | float | None) -> str | float:
    if value is None:
        return ""
    return guarded(value) if isinstance(value, str) else value


def _values(facts: Facts, row: SampleRow, columns: Sequence[str]) -> list[str | float | None]:
    need = row.noise_std_for_target
    label = " ".join(map(str, row.target)) if isinstance(row.target, list) else row.target
    values: list[str | float | None] = [
        row.id,
        label,
        target_text(row.target, facts.result.data.class_names),
        row.verdict,
        row.status,
        row.reason,
        row.loss,
        need.std if need else None,
        need.target_rmse if need else None,
        need.status if need else "not_applicable",
    ]
    values += [row.upload, row.classmates, row.copies] if facts.is_joint else []
    for proxy in facts.proxy_ids:
        estimate = row.proxies.get(proxy)
        if estimate is None:
            values += [None, None, None, "failed" if row.status == "failed" else "not_applicable"]
        else:
            values += [estimate.value, estimate.low, estimate.high, estimate.status]
    for name in columns:
        if (risk := row.columns.get(name)) is None:
            values += [None, None, "failed"]
        else:
            values += [risk.estimate.value, risk.revealed.ends[1], risk.estimate.status]
    if facts.result.checks:
        values.append(" ".join(leaking_checks(facts.result.checks, row.id)))
    if facts.rank_ranges:
        values.append(" to ".join(map(str, facts.rank_ranges.get(row.id, ()))))
    return values
