"""The encoding of a table: its columns in order, and which of a model's inputs belong to which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from riskaudit.errors import SamplesError
from riskaudit.formatting import short
from riskaudit.tables.columns import Category, Cells, Column, IgnoredColumn, NumberColumn, Values

# Columns named in one message.
LISTED = 12


@final
@dataclass(frozen=True)
class NumberInput:
    """The input of a column of numbers.

    Attributes:
        name: of the column.
        position: of the input.
        std: the column's units per unit of the input.
        unit: of the column.
        expected: mean and standard deviation of the input over people; None where they aren't known.
    """

    name: str
    position: int
    std: float
    unit: str
    expected: tuple[float, float] | None


@final
@dataclass(frozen=True, eq=False)
class CategoryInputs:
    """The inputs of a category.

    Attributes:
        name: of the column.
        first: position of the first input.
        codes: what the inputs may be, distinct, [K, width].
        words: of the codes; private input.
    """

    name: str
    first: int
    codes: Values
    words: tuple[str, ...]

    @property
    def span(self) -> slice:
        """The inputs' positions."""
        return slice(self.first, self.first + self.codes.shape[1])

    def nearest(self, inputs: Values) -> NDArrayInt:
        """The code that is the nearest to inputs [..., width], by its number, [...]."""
        gaps = np.square(inputs[..., None, :] - self.codes).sum(-1)
        return np.asarray(gaps.argmin(-1))


NDArrayInt = np.ndarray[tuple[int, ...], np.dtype[np.intp]]


@final
@dataclass(frozen=True, eq=False)
class TableEncoding:
    """How the columns of a table become a model's inputs.

    Attributes:
        columns: in the order of the inputs.
        label: the column of labels; None for the usual names, else the last column.
        name: of the file that it was declared in.
        sha256: of that file.
    """

    columns: tuple[Column, ...]
    label: str | None = None
    name: str = "encoding"
    sha256: str | None = None

    @property
    def width(self) -> int:
        """How many inputs there are."""
        return sum(column.width for column in self.columns)

    @cached_property
    def places(self) -> list[tuple[Column, int]]:
        """Each column that the model sees, with the position of its first input."""
        seen = [column for column in self.columns if column.width]
        firsts = np.cumsum([0, *(column.width for column in seen)]).tolist()
        return list(zip(seen, firsts, strict=False))

    @cached_property
    def numbers(self) -> list[NumberInput]:
        """The inputs of columns of numbers."""
        return [
            NumberInput(column.name, first, column.std, column.unit, column.expected)
            for column, first in self.places
            if isinstance(column, NumberColumn)
        ]

    @cached_property
    def categories(self) -> list[CategoryInputs]:
        """The inputs of categories, whether a number is missing among them."""
        return list(self._categories())

    def _categories(self) -> Iterator[CategoryInputs]:
        for column, first in self.places:
            if isinstance(column, NumberColumn) and column.missing_input:
                codes = np.array([[0.0], [1.0]])
                yield CategoryInputs(f"{column.name} (missing)", first + 1, codes, ("present", "missing"))
            if isinstance(column, Category):
                words = column.categories + ("missing",) * (len(column.codes) - len(column.categories))
                yield CategoryInputs(column.name, first, column.codes, words)

    def check_columns(self, cells: Cells, others: tuple[str, ...]) -> None:
        """Refuse a table with columns that aren't declared; ``others`` are those of labels and identifiers.

        Raises:
            SamplesError: the first such column.
        """
        declared = {source for column in self.columns for source in column.sources}
        for name in cells.columns:
            if name not in declared and name not in others:
                raise SamplesError(
                    f"the column {short(name, 30) or '(without a name)'} of {cells.name} isn't in {self.name}; declare "
                    f'it there as the model takes it, or with kind = "ignore" if it doesn\'t see it'
                )

    def encode(self, cells: Cells, count: int) -> Values:
        """The inputs of the first rows of a table, [count, width].

        Raises:
            SamplesError: a cell doesn't fit its column, or a column isn't there.
        """
        return np.concatenate([column.encode(cells, count) for column in self.columns], axis=1)

    def widths(self) -> str:
        """How many inputs each column became, in words."""
        named = [f"{short(column.name, 20)} {column.width}" for column, _ in self.places]
        rest = f" and {len(named) - LISTED} more columns" if len(named) > LISTED else ""
        return ", ".join(named[:LISTED]) + rest

    @property
    def ignored(self) -> list[str]:
        """Columns that the model doesn't see."""
        return [column.name for column in self.columns if isinstance(column, IgnoredColumn)]
