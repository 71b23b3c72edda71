"""Ranks of samples whose numbers may be intervals: from first to last, as far as the intervals tell."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from riskaudit.results.base import Estimate


def position(estimate: Estimate | None, riskier: str) -> float | None:
    """What a sample is sorted by: its value, else the riskier end of its interval; None where nothing is known.

    Args:
        estimate: of the sample.
        riskier: "higher" or "lower".
    """
    if estimate is None:
        return None
    return estimate.ends[1 if riskier == "higher" else 0] if estimate.value is None else estimate.value


def overlaps(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether two intervals (low, high) have a point in common."""
    return first[0] <= second[1] and second[0] <= first[1]


def known_ends(estimate: Estimate | None) -> tuple[float, float] | None:
    """The ends of what may be relied on, None where one of them is unknown."""
    low, high = (None, None) if estimate is None else estimate.ends
    return None if low is None or high is None else (low, high)


def rank_ranges(ends: Sequence[tuple[float, float]], riskier: str) -> list[tuple[int, int]]:
    """The first and the last rank that each sample may have, 1 being the riskiest.

    A sample's first rank counts those that are riskier for certain, its last one those that are not less risky for
    certain. Exact values give a single rank each, equal ones share theirs.

    Args:
        ends: (low, high) of every sample.
        riskier: "higher" or "lower".
    """
    sign = 1.0 if riskier == "higher" else -1.0
    spans = [(min(sign * low, sign * high), max(sign * low, sign * high)) for low, high in ends]
    lows, highs = sorted(low for low, _ in spans), sorted(high for _, high in spans)
    total = len(spans)
    return [(1 + total - bisect_right(lows, high), total - bisect_left(highs, low)) for low, high in spans]


def num_rivals(ends: Sequence[tuple[float, float]], riskier: str) -> int:
    """How many samples may be the riskiest: those whose first rank can be 1."""
    return sum(first == 1 for first, _ in rank_ranges(ends, riskier))
