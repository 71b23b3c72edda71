"""Tables of words, numbers and missing cells, by the encoding that the model was trained with (`riskaudit.tables`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from riskaudit.errors import SamplesError
from riskaudit.inputs.arrays import MAX_INPUT_BYTES, RawSamples, number_labels
from riskaudit.inputs.reading import Reading
from riskaudit.inputs.text import clean
from riskaudit.tables import Cells, TableEncoding


def encoded_samples(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    label: int | None,
    identifier: int | None,
    every_label: Callable[[], Iterable[str]],
    reading: Reading,
    name: str,
) -> RawSamples:
    """Rows of a table, each as long as ``columns``, as samples.

    Args:
        columns: names, distinct.
        rows: of the samples, every cell a text.
        label: position of the labels' column, where there is one.
        identifier: likewise of the samples' names.
        every_label: the different labels of the other rows.
        reading: holds the encoding.
        name: for messages.

    Raises:
        SamplesError: the table doesn't fit the encoding.
    """
    encoding = reading.encoding
    assert encoding is not None
    cells = as_cells(columns, rows, name)
    others = tuple(columns[position] for position in (label, identifier) if position is not None)
    encoding.check_columns(cells, others)
    if len(rows) * encoding.width * 8 > MAX_INPUT_BYTES:
        raise SamplesError(f"{name} holds {len(rows)} rows of {encoding.width} inputs, too many; use `limit`")
    inputs = torch.from_numpy(encoding.encode(cells, len(rows)))
    labels = None if label is None else [row[label].strip() for row in rows]
    numbered = None
    if labels is not None and (reading.labelled or all(labels)):
        numbered = number_labels(labels, every_label, reading, name)
    return RawSamples(inputs, numbered, None if identifier is None else [row[identifier] for row in rows])


def as_cells(columns: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> Cells:
    """Rows of texts by column."""
    return Cells(name, {column: [row[place].strip() for row in rows] for place, column in enumerate(columns)})


def label_by_encoding(encoding: TableEncoding, columns: Sequence[str], name: str) -> int | None:
    """Position of the column of labels that an encoding names, None where it leaves it to the usual names.

    Raises:
        SamplesError: there is no such column.
    """
    if encoding.label is None:
        return None
    if encoding.label not in columns:
        raise SamplesError(
            f"expected the column {clean(encoding.label, 30)} of labels in {name}, as {encoding.name} says, found none "
            "of that name; mend `label` there"
        )
    return columns.index(encoding.label)


def as_text(value: object) -> str:
    """A cell of a typed table as text; whole numbers without a point, as people declare them."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value).strip()
