"""What a result says of a table's columns. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from riskaudit.results.base import Estimate, Record


class ColumnInfo(Record):
    """One column of a table, without any of its values.

    Attributes:
        name: name of the column.
        kind: what its values are.
        inputs: how many inputs of the model it became.
        num_categories: number of a category's codes, those of missing values among them; None of numbers.
        missing: what becomes of a missing value, in words.
        unit: unit of a number; empty where none is known.
    """

    name: str
    kind: Literal["number", "category", "boolean"]
    inputs: int = Field(ge=1)
    num_categories: int | None = Field(default=None, ge=2)
    missing: str = ""
    unit: str = ""


class EncodingInfo(Record):
    """How a table became inputs.

    Attributes:
        name: name of the file that declares it, by which another audit encodes alike.
        sha256: SHA-256 of this file, in hexadecimal digits; null where there is none.
        columns: one entry for each column that the model sees, in the order of the inputs.
        ignored: names of the columns that the model doesn't see.
    """

    name: str
    sha256: str | None = None
    columns: list[ColumnInfo] = Field(default_factory=list)
    ignored: list[str] = Field(default_factory=list)


class ColumnRisk(Record):
    """What a release tells of one column of one sample.

    Attributes:
        kind: "number" or "category".
        estimate: of a number, the error that is left to an attacker, in the column's units (posterior error). Of a
            category, the probability that an attacker who knows that it is one, and all else of the sample, takes the
            right one.
        guess: the same without the release: the error of the column's mean, one over the number of categories.
        revealed: how much of the way from the guess to certainty is gone, 0 to 1: what verdicts and limits go by.
        reason: why there is no number.
    """

    kind: Literal["number", "category"]
    estimate: Estimate
    guess: float = Field(ge=0)
    revealed: Estimate
    reason: str | None = None


def most_exposed(columns: Mapping[str, ColumnRisk]) -> tuple[str, ColumnRisk] | None:
    """The column of a sample of which the most may be revealed, one of which nothing is known before all others."""
    return max(columns.items(), key=lambda pair: _most(pair[1]), default=None)


def _most(risk: ColumnRisk) -> float:
    high = risk.revealed.ends[1]
    return 2.0 if high is None else high
