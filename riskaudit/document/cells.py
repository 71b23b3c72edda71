"""Numbers, statuses and verdicts as table cells.

A value that isn't known is shown as the word for its status, never as a blank and never as 0.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from riskaudit.document.blocks import Cell, Tone
from riskaudit.formatting import given, interval, number, percent
from riskaudit.results import Estimate, Status, Verdict

STATUS_MARKS: dict[Status, str] = {
    "exact": "=",
    "converged": "≈",
    "bracketed": "∈",
    "not_converged": "?",
    "singular": "†",
    "not_applicable": "–",
    "failed": "×",
}
STATUS_WORDS: dict[Status, str] = {
    "exact": "exact",
    "converged": "converged within tolerance",
    "bracketed": "bracketed: the true value lies in the interval",
    "not_converged": "not converged: don't rely on it",
    "singular": "singular: no finite value exists",
    "not_applicable": "not applicable",
    "failed": "failed",
}
SHORT_STATUS: dict[Status | Literal["stopped", "not_run"], str] = {
    "exact": "exact",
    "converged": "converged",
    "bracketed": "bracketed",
    "not_converged": "not converged",
    "singular": "singular",
    "not_applicable": "not applicable",
    "failed": "failed",
    "stopped": "stopped by the budget",
    "not_run": "not run for lack of time",
}
VERDICT_WORDS: dict[Verdict, str] = {
    "high": "▲ high",
    "medium": "◆ medium",
    "low": "● low",
    "not_assessed": "○ not assessed",
}
VERDICT_TONES: dict[Verdict, Tone] = {"high": "high", "medium": "medium", "low": "low", "not_assessed": "unknown"}
# Sorting a verdict column puts the worst first; what wasn't assessed is never ranked as safe.
VERDICT_ORDER: dict[Verdict, float | None] = {"high": 3, "medium": 2, "low": 1, "not_assessed": None}


def estimate_cell(estimate: Estimate | None, reason: str = "") -> Cell:
    """A proxy's value with its status and interval, or the word that says why there is none."""
    if estimate is None:
        return Cell("not applicable", detail=reason, tone="unknown")
    mark, word = STATUS_MARKS[estimate.status], STATUS_WORDS[estimate.status]
    detail = interval(estimate.low, estimate.high)
    if estimate.value is None and estimate.assessed and estimate.low is not None and estimate.high is not None:
        return Cell(detail, (estimate.low + estimate.high) / 2, mark, word)
    if estimate.value is None:
        shown = SHORT_STATUS[estimate.status] if estimate.status not in {"exact", "converged"} else "no value"
        return Cell(shown, detail=detail or reason, tone="unknown")
    return Cell(number(estimate.value), estimate.value, mark, word, detail)


def number_cell(value: float | None, status: Status | None = None, missing: str = "not applicable") -> Cell:
    """A number with its status, or ``missing``."""
    if value is None:
        return Cell(missing, tone="unknown")
    if status is None:
        return Cell(number(value), value)
    return Cell(number(value), value, STATUS_MARKS[status], STATUS_WORDS[status])


def given_cell(value: float) -> Cell:
    """A number that somebody set, with as many digits as they gave."""
    return Cell(given(value), value)


def share_cell(share: float | None, missing: str = "not applicable") -> Cell:
    """A share in [0, 1] as a percentage, or ``missing``."""
    return Cell(missing, tone="unknown") if share is None else Cell(percent(share), share)


def ends_cell(value: float | None, low: float | None, high: float | None, missing: str = "not applicable") -> Cell:
    """A number with the ends of its interval below it, or ``missing``."""
    return replace(number_cell(value, missing=missing), detail=interval(low, high))


def count_cell(amount: int) -> Cell:
    """A whole number; as a number to sort by, no more than a float holds."""
    largest = int(sys.float_info.max)
    return Cell(f"{amount:,}", float(max(-largest, min(largest, amount))))


def verdict_cell(verdict: Verdict) -> Cell:
    """A verdict with its symbol, so that colour never stands alone."""
    return Cell(VERDICT_WORDS[verdict], VERDICT_ORDER[verdict], tone=VERDICT_TONES[verdict])


def tally(statuses: Iterable[Status | Literal["stopped", "not_run"]]) -> str:
    """How many of each status, most frequent first: "6 exact, 2 not converged"."""
    counts = Counter(statuses)
    ordered = sorted(counts, key=lambda status: (-counts[status], list(SHORT_STATUS).index(status)))
    return ", ".join(f"{counts[status]:,} {SHORT_STATUS[status]}" for status in ordered) or "none"
