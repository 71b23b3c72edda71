"""A proposal of an encoding from the cells of a table: what most preprocessing would make of it.

Numbers are standardised by their own mean and standard deviation, words become one-hot categories in the order of the
alphabet, true and false one input; a missing number is filled with the mean, a missing word has an input of its own.
It is right only where the model's own preprocessing is the same, which nobody but its owner knows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from riskaudit.errors import SamplesError
from riskaudit.formatting import short
from riskaudit.tables.columns import FALSE, TRUE, Category, Cells, Column, IgnoredColumn, NumberColumn, is_missing
from riskaudit.tables.encoding import TableEncoding

# More different words than this are no categories.
MOST_CATEGORIES = 100


def encoding_of(cells: Cells, label: str | None, others: Sequence[str] = ()) -> TableEncoding:
    """The encoding of every column but the label's and ``others``, which hold identifiers.

    Raises:
        SamplesError: a column of which nothing sensible can be made; the message names it and never shows a cell.
    """
    names = [name for name in cells.columns if name != label and name not in others]
    columns = tuple(_column(name, cells) for name in names)
    encoding = TableEncoding(columns, label, cells.name)
    if not encoding.width:
        raise SamplesError(f"{cells.name} has no column that a model could see; expected one at least")
    return encoding


def _column(name: str, cells: Cells) -> Column:
    every = cells.columns[name]
    present = [cell for cell in every if not is_missing(cell)]
    distinct = set(present)
    if not present:
        raise _refused(name, cells, "has no value in any row", "leave it out, or declare it by hand")
    if not name and len(distinct) == len(every):
        return IgnoredColumn(name)  # the index that pandas writes in front
    if len(distinct) < 2:
        raise _refused(name, cells, "has one value only", 'leave it out, or declare it by hand or as kind = "ignore"')
    missing = len(present) < len(every)
    if {cell.lower() for cell in distinct} <= {*TRUE, *FALSE}:
        return Category(name, ("false", "true"), boolean=True, missing="category" if missing else "refuse")
    numbers = [_number(cell) for cell in present]
    words = sum(number is None for number in numbers)
    if not words:
        values = np.array(numbers, dtype=np.float64)
        mean, std = float(values.mean()), float(values.std())
        if not (np.isfinite(mean) and np.isfinite(std) and std > 0):
            raise _refused(name, cells, "holds numbers without a mean and a spread", "declare it by hand")
        return NumberColumn(name, mean, std, scaled_by="deviation", missing=mean if missing else None)
    if len(distinct) > MOST_CATEGORIES:
        actual = f"holds {len(distinct)} different values, of which {words} aren't numbers"
        advice = 'mend it, leave it out, or declare its categories by hand or kind = "ignore"'
        raise _refused(name, cells, actual, advice)
    return Category(name, tuple(sorted(distinct)), missing="category" if missing else "refuse")


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _refused(name: str, cells: Cells, actual: str, advice: str) -> SamplesError:
    return SamplesError(f"the column {short(name, 30) or '(without a name)'} of {cells.name} {actual}; {advice}")
