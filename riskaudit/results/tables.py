"""What a result says of a table's columns. Nothing here needs torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from riskaudit.results.base import Record


class ColumnInfo(Record):
    """One column of a table, without any of its values.

    Attributes:
        name: of the column.
        kind: what its values are.
        inputs: how many inputs of the model it became.
        num_categories: of a category, codes of missing values among them; None of numbers.
        missing: what becomes of a missing value, in words.
        unit: of numbers; may be empty.
    """

    name: str
    kind: Literal["number", "category", "boolean"]
    inputs: int = Field(ge=1)
    num_categories: int | None = Field(default=None, ge=2)
    missing: str = ""
    unit: str = ""


class EncodingInfo(Record):
    """How a table became inputs: the file that declares it, by which another audit encodes alike.

    ``ignored`` are columns that the model doesn't see.
    """

    name: str
    sha256: str | None = None
    columns: list[ColumnInfo] = Field(default_factory=list)
    ignored: list[str] = Field(default_factory=list)
