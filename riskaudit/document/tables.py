"""Tables from rows of any kind: a column is a title and what it shows of a row.

table("layers", "Layers", rows, [text("Layer", lambda row: row.layer), number("Mean", lambda row: row.mean)])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypedDict, TypeVar, Unpack

from riskaudit.document import cells
from riskaudit.document.blocks import Cell, Column, Table

Row = TypeVar("Row")


@dataclass(frozen=True)
class RowColumn(Generic[Row]):
    """A column, and the cell of a row in it.

    A ``brief`` one stands in the Markdown summary too; one that isn't ``shown`` is left out.
    """

    column: Column
    cell: Callable[[Row], Cell]
    brief: bool = False
    shown: bool = True


Columns: TypeAlias = Sequence[RowColumn[Row]]


class Look(TypedDict, total=False):
    """How a table is set, as the fields of `Table` say."""

    note: str
    sortable: bool
    layout: Literal["normal", "dense", "compact", "fitted", "halved", "landscape"]
    folded: bool
    print_rows: int | None
    brief_rows: int | None
    brief: bool
    left_out: int


def table(table_id: str, caption: str, rows: Iterable[Row], columns: Columns[Row], **look: Unpack[Look]) -> Table:
    """One line per row, one cell per column.

    Args:
        table_id: anchor of the table.
        caption: what it shows.
        rows: in the order of the table.
        columns: the first one heads the rows.
        look: how it is set.
    """
    shown = [column for column in columns if column.shown]
    return Table(
        table_id,
        caption,
        tuple(column.column for column in shown),
        tuple(tuple(column.cell(row) for column in shown) for row in rows),
        brief_columns=tuple(place for place, column in enumerate(shown) if column.brief) or None,
        **look,
    )


def column(
    title: str,
    cell: Callable[[Row], Cell],
    unit: str = "",
    *,
    numeric: bool = True,
    ranked: bool = False,
    filtered: bool = False,
    brief: bool = False,
    shown: bool = True,
) -> RowColumn[Row]:
    """A column of cells of its own making."""
    return RowColumn(Column(title, numeric, unit, ranked, filtered), cell, brief, shown)


def text(title: str, words: Callable[[Row], str], *, brief: bool = False, shown: bool = True) -> RowColumn[Row]:
    """A column of words."""
    return column(title, lambda row: Cell(words(row)), numeric=False, brief=brief, shown=shown)


def number(
    title: str,
    value: Callable[[Row], float | None],
    unit: str = "",
    *,
    missing: str = "not applicable",
    brief: bool = False,
    shown: bool = True,
) -> RowColumn[Row]:
    """A column of numbers; ``missing`` stands where there is none."""
    return column(title, lambda row: cells.number_cell(value(row), missing=missing), unit, brief=brief, shown=shown)


def setting(title: str, value: Callable[[Row], float], unit: str = "") -> RowColumn[Row]:
    """A column of numbers that somebody set, with as many digits as they gave."""
    return column(title, lambda row: cells.given_cell(value(row)), unit)


def count(title: str, amount: Callable[[Row], int], *, brief: bool = False) -> RowColumn[Row]:
    """A column of whole numbers."""
    return column(title, lambda row: cells.count_cell(amount(row)), brief=brief)


def share(
    title: str,
    value: Callable[[Row], float | None],
    unit: str = "",
    *,
    missing: str = "not applicable",
    brief: bool = False,
    shown: bool = True,
) -> RowColumn[Row]:
    """A column of shares in [0, 1] as percentages; ``missing`` stands where there is none."""
    return column(title, lambda row: cells.share_cell(value(row), missing), unit, brief=brief, shown=shown)


def pairs(
    table_id: str, caption: str, titles: tuple[str, str], rows: Iterable[tuple[str, str]], **look: Unpack[Look]
) -> Table:
    """A table of two columns of words."""
    columns: Columns[tuple[str, str]] = (text(titles[0], lambda pair: pair[0]), text(titles[1], lambda pair: pair[1]))
    return table(table_id, caption, rows, columns, **look)
