"""What every row of a result has in common. Nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from riskaudit.errors import ResultError

Status: TypeAlias = Literal["exact", "converged", "bracketed", "not_converged", "singular", "not_applicable", "failed"]
Verdict: TypeAlias = Literal["high", "medium", "low", "not_assessed"]
Target: TypeAlias = int | float | list[float]


# Statuses of numbers that may be relied on; a number with any other one is never "safe".
RELIABLE: frozenset[Status] = frozenset({"exact", "converged", "bracketed"})


class Record(BaseModel):
    """Base of every row: immutable, no NaN or infinity, unknown keys of later versions ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class FileRecord(Record):
    """A record that is a file of its own."""

    def to_json(self) -> str:
        """The record as indented JSON with a final newline."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_file(path: str | Path) -> bytes:
    """A file's content.

    Raises:
        ResultError: it can't be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ResultError(f"can't read {path}: {error.strerror or error}") from error


def first_fault(error: ValidationError, whole: str = "") -> str:
    """The first field that doesn't fit, and why; ``whole`` names the record itself."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or whole}: {first['msg']}"


class Estimate(Record):
    """A number with what is known of it: an interval where one is known, and a status.

    A "bracketed" one whose interval is too wide for a point value has none
    (`riskaudit.sensitivity.estimates.interval`).
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    status: Status

    @property
    def reliable(self) -> float | None:
        """The value, where it may be relied on."""
        return self.value if self.status in RELIABLE else None

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """The lower and the upper end of what may be relied on: the value, where it has no interval."""
        if self.status not in RELIABLE:
            return None, None
        return (
            self.value if self.low is None else self.low,
            self.value if self.high is None else self.high,
        )

    @property
    def assessed(self) -> bool:
        """Whether a value or both ends of an interval may be relied on."""
        return self.reliable is not None or None not in self.ends


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
