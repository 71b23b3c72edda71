"""Numbers with their status and interval, as the result records them."""

from __future__ import annotations

import math

from riskaudit.linalg import Interval
from riskaudit.results import RELIABLE, Estimate, Status

# The widest interval with a point value: its share of the range of what is possible, or the ratio of its ends.
WIDEST, WIDEST_RATIO = 0.25, 10.0


def estimate(value: float | None, status: Status, low: float | None = None, high: float | None = None) -> Estimate:
    """An estimate in which whatever isn't finite is None; an answer that isn't finite has failed.

    An exact value needs no interval.
    """
    finite = [number if number is not None and math.isfinite(number) else None for number in (value, low, high)]
    if value is not None and finite[0] is None and status in RELIABLE:
        status = "failed"
    if status == "exact":
        return Estimate(value=finite[0], status=status)
    return Estimate(value=finite[0], low=finite[1], high=finite[2], status=status)


def interval(ends: Interval, status: Status, nothing: tuple[float, float]) -> Estimate:
    """A bracketed (or exact) number; one that says no more than ``nothing`` did not converge.

    An end that isn't finite is unknown, and so is the value then. Inside a wide interval no value is likelier than
    another: networks whose inputs are revealed to 0.42 and to 1.0 had the same interval, 0.12 to 1, after 3 products.
    So there is a value only where the interval takes up at most `WIDEST` of the range of what is possible, or without
    an upper end of that range, where its ends are within a factor of `WIDEST_RATIO`.
    """
    if status == "exact":
        return estimate(ends.value, "exact")
    low, high = nothing
    if ends.low <= low and ends.high >= high:
        return estimate(None, "not_converged", ends.low, ends.high)
    # A value at the very end of what is possible is none unless the interval says so.
    has_value = math.isfinite(ends.high) and (ends.value > low or ends.high <= low)
    if math.isfinite(high):
        has_value = has_value and ends.high - ends.low <= WIDEST * (high - low)
    else:
        has_value = has_value and ends.high <= WIDEST_RATIO * ends.low
    return estimate(ends.value if has_value else None, "bracketed", ends.low, ends.high)
