"""What every row of a result has in common. Nothing here needs torch."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

Status: TypeAlias = Literal["exact", "converged", "bracketed", "not_converged", "singular", "not_applicable", "failed"]
Verdict: TypeAlias = Literal["high", "medium", "low", "not_assessed"]
Target: TypeAlias = int | float | list[float]


class Record(BaseModel):
    """Base of every row: immutable, no NaN or infinity, unknown keys of later versions ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Estimate(Record):
    """A number with what is known of it: an interval where one is known, and a status."""

    value: float | None
    low: float | None = None
    high: float | None = None
    status: Status


class SuccessProbability(Record):
    """Probability that the Bayes-optimal attacker comes within ``tolerance`` (RMSE, data units) of a sample.

    ``low`` and ``high`` bound it where it isn't exact, or where a calibration widens it. ``probability`` is
    None where only bounds are known.
    """

    tolerance: float
    probability: float | None
    low: float | None = None
    high: float | None = None
    status: Status
