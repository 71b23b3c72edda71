"""Columns of a table and the inputs that a model has of them.

A number v becomes (v - mean) / std. A category becomes a code: 1 at its own place among the column's categories and 0
elsewhere (one-hot), a boolean the one input 0 or 1; codes may be standardised like numbers, input by input. A cell
without a value is filled, has a code of its own, or is refused.

No message shows a cell: only the column's name and the number of the row.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from riskaudit.errors import SamplesError
from riskaudit.formatting import short

Kind: TypeAlias = Literal["number", "category", "boolean"]
Values: TypeAlias = NDArray[np.float64]
# What stands for no value, as pandas and the UCI repository write it.
MISSING_MARKS = frozenset({"", "?", "na", "n/a", "nan", "null", "none", "<na>"})
TRUE, FALSE = ("true", "yes", "t", "y", "1", "1.0"), ("false", "no", "f", "n", "0", "0.0")


@dataclass(frozen=True)
class Cells:
    """The columns of a table by name, each cell a text without space around it; ``name`` is the file's."""

    name: str
    columns: Mapping[str, Sequence[str]]

    def of(self, column: str) -> Sequence[str]:
        """Cells of a column.

        Raises:
            SamplesError: there is no such column.
        """
        if column not in self.columns:
            known = ", ".join(short(each, 20) for each in list(self.columns)[:8])
            raise SamplesError(
                f"the encoding names the column {short(column, 30)}, which {self.name} doesn't have (it begins with "
                f"{known}); spell it as in the table, or take it out of the encoding"
            )
        return self.columns[column]


def is_missing(cell: str) -> bool:
    """Whether a cell holds a mark of no value."""
    return cell.lower() in MISSING_MARKS


@dataclass(frozen=True)
class Column(ABC):
    """One column of a table, or a category that several columns hold.

    Attributes:
        name: in the table.
        kind: what its values are.
        width: how many inputs it becomes.
        sources: columns of the table that it is read from.
    """

    name: str

    @property
    @abstractmethod
    def kind(self) -> Kind | None:
        """What its values are; None where the model doesn't see them."""

    @property
    def width(self) -> int:
        """How many inputs it becomes."""
        return 0

    @property
    def sources(self) -> tuple[str, ...]:
        """Columns of the table that it is read from."""
        return (self.name,)

    @property
    def missing_words(self) -> str:
        """What becomes of a cell without a value, in words."""
        return ""

    @abstractmethod
    def encode(self, cells: Cells, count: int) -> Values:
        """The column's inputs of the first ``count`` rows, [count, width].

        Raises:
            SamplesError: a cell that the column can't hold; the message names column and row.
        """


@final
@dataclass(frozen=True)
class IgnoredColumn(Column):
    """A column that the model doesn't see."""

    @property
    @override
    def kind(self) -> None:
        return None

    @override
    def encode(self, cells: Cells, count: int) -> Values:
        cells.of(self.name)
        return np.empty((count, 0))


@final
@dataclass(frozen=True)
class NumberColumn(Column):
    """Numbers, shifted and scaled.

    Attributes:
        mean: that is taken off, in the column's units.
        std: that is divided by, likewise.
        scaled_by: whether these are the mean and the standard deviation of people's values ("deviation"), or the least
            of them and their range ("range"), as far as is known.
        missing: what stands in for a missing value, in the column's units; None refuses it.
        missing_input: whether one more input says, by 1, that the value is missing.
        unit: of the values, for people; may be empty.
    """

    mean: float = 0.0
    std: float = 1.0
    scaled_by: Literal["deviation", "range"] | None = None
    missing: float | None = None
    missing_input: bool = False
    unit: str = ""

    @property
    @override
    def kind(self) -> Kind:
        return "number"

    @property
    @override
    def width(self) -> int:
        return 1 + self.missing_input

    @property
    def expected(self) -> tuple[float, float] | None:
        """Mean and standard deviation that an attacker expects of the input; None where nothing is known."""
        # Of a range all values may be as likely.
        return {"deviation": (0.0, 1.0), "range": (0.5, 12**-0.5)}.get(self.scaled_by or "")

    @property
    @override
    def missing_words(self) -> str:
        if self.missing is None:
            return "refused"
        filled = "filled with the mean" if self.missing == self.mean else "filled with a number"
        return filled + (", and said by an input of its own" if self.missing_input else "")

    @override
    def encode(self, cells: Cells, count: int) -> Values:
        inputs = np.zeros((count, self.width))
        for row, cell in enumerate(cells.of(self.name)[:count]):
            value = _number(cell)
            if value is None and not is_missing(cell):
                raise _unfit(self, cells, row, "text", "a number", f'declare it as kind = "category" ({self.name})')
            if value is None and self.missing is None:
                raise _unfit(self, cells, row, "no value", "a number", "say in the encoding what `missing` becomes")
            if value is None:
                assert self.missing is not None
                value = self.missing
                inputs[row, 1:] = 1.0
            inputs[row, 0] = (value - self.mean) / self.std
        return inputs


Missing: TypeAlias = Literal["refuse", "category", "zeros"]


@final
@dataclass(frozen=True)
class Category(Column):
    """One of several words, or true and false.

    Attributes:
        categories: the words, in the order of the inputs; false and true of a boolean.
        boolean: one input for both.
        missing: "category" gives a missing value an input of its own, the last; "zeros" leaves all inputs 0; "refuse".
        drop_first: the first category has no input: all are 0.
        mean: taken off each input; empty for 0.
        std: each input is divided by; empty for 1.
        columns: of a category that is one-hot in the table already, its columns of 0 and 1, one for each category;
            else empty.
    """

    categories: tuple[str, ...] = ()
    boolean: bool = False
    missing: Missing = "refuse"
    drop_first: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    @override
    def kind(self) -> Kind:
        return "boolean" if self.boolean else "category"

    @property
    @override
    def width(self) -> int:
        own = 1 if self.boolean else len(self.categories) - self.drop_first
        return own + (self.missing == "category")

    @property
    @override
    def sources(self) -> tuple[str, ...]:
        return self.columns or (self.name,)

    @property
    @override
    def missing_words(self) -> str:
        return {"refuse": "refused", "category": "a category of its own", "zeros": "all inputs 0"}[self.missing]

    @property
    def codes(self) -> Values:
        """The inputs of each category, then those of a missing value where it has some, [K, width]."""
        count = len(self.categories)
        plain = np.array([[0.0], [1.0]]) if self.boolean else np.eye(count)[:, int(self.drop_first) :]
        if self.missing == "category":
            plain = np.pad(plain, ((0, 1), (0, 1)))
            plain[-1, -1] = 1.0
        elif self.missing == "zeros":
            plain = np.pad(plain, ((0, 1), (0, 0)))
        return np.asarray((plain - (self.mean or 0.0)) / (self.std or 1.0))

    @override
    def encode(self, cells: Cells, count: int) -> Values:
        codes = self.codes
        numbers = self._from_columns(cells, count) if self.columns else self._from_words(cells, count)
        return codes[numbers] if count else np.empty((0, self.width))

    def _from_words(self, cells: Cells, count: int) -> list[int]:
        number_of = {word: number for number, word in enumerate(self.categories)}
        if self.boolean:
            number_of = dict.fromkeys(FALSE, 0) | dict.fromkeys(TRUE, 1) | number_of
        return [self._number_of(cell, number_of, cells, row) for row, cell in enumerate(cells.of(self.name)[:count])]

    def _number_of(self, cell: str, number_of: Mapping[str, int], cells: Cells, row: int) -> int:
        number = number_of.get(cell, number_of.get(cell.lower()) if self.boolean else None)
        if number is not None:
            return number
        if not is_missing(cell):
            expected = "true or false" if self.boolean else f"one of its {len(self.categories)} categories"
            raise _unfit(self, cells, row, "another word", expected, "declare every category of the model, in order")
        if self.missing == "refuse":
            raise _unfit(self, cells, row, "no value", "a category", "say in the encoding what `missing` becomes")
        return len(self.categories)

    def _from_columns(self, cells: Cells, count: int) -> list[int]:
        rows = np.zeros((count, len(self.columns)), dtype=bool)
        for place, column in enumerate(self.columns):
            for row, cell in enumerate(cells.of(column)[:count]):
                if cell.lower() not in (*TRUE, *FALSE):
                    raise SamplesError(
                        f"sample {row} in {cells.name} has neither 0 nor 1 in column {short(column, 30)}, expected the "
                        f"one-hot code of {short(self.name, 30)}; give the columns before they are standardised"
                    )
                rows[row, place] = cell.lower() in TRUE
        for row in np.flatnonzero(rows.sum(axis=1) != 1).tolist():
            if rows[row].any() or self.missing != "zeros":
                raise SamplesError(
                    f"sample {row} in {cells.name} has {int(rows[row].sum())} ones in the columns of "
                    f"{short(self.name, 30)}, expected exactly one; name all its columns, or declare what `missing` "
                    "becomes"
                )
        return [int(row.argmax()) if row.any() else len(self.categories) for row in rows]


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        boolean = cell.lower()
        return 1.0 if boolean == "true" else 0.0 if boolean == "false" else None
    return value if math.isfinite(value) else None


def _unfit(column: Column, cells: Cells, row: int, actual: str, expected: str, advice: str) -> SamplesError:
    return SamplesError(
        f"sample {row} in {cells.name} has {actual} in column {short(column.name, 30)}, expected {expected}; {advice}"
    )
