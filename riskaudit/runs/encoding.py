"""A shard's rows as plain JSON and back, to the last bit.

Rows are written as audit.json has them. What a result needs besides (`Information`: what a release tells at any noise)
is made of few classes, each of which keeps what it was made from: an object is written as those arguments, in a table,
so that what several share is written once. Arrays are the base64 of their little-endian float64.
"""

from __future__ import annotations

import base64
import inspect
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, final

import numpy as np

from riskaudit.audit.rows import BatchRows
from riskaudit.linalg import BlockProbe, BlockTraces, Deflation, TraceProbes, Tridiagonal
from riskaudit.results import SampleRow
from riskaudit.results.checks import CheckFinding
from riskaudit.sensitivity import Concentration
from riskaudit.sensitivity.columns import NumberVariance, TableInformation
from riskaudit.sensitivity.information import BracketedInformation, ExactInformation, RaisedInformation
from riskaudit.statistics.recognition import Recognition

_CLASSES: dict[str, Any] = {
    each.__name__: each
    for each in (
        BlockProbe, BlockTraces, BracketedInformation, Concentration, Deflation, ExactInformation, NumberVariance,
        RaisedInformation, Recognition, TableInformation, TraceProbes, Tridiagonal,
    )
}  # fmt: skip


def encode(rows: BatchRows, findings: Sequence[CheckFinding]) -> dict[str, Any]:
    """Rows and findings of leak checks as plain JSON."""
    table = _Writer()
    return {
        "rows": [row.model_dump(mode="json") for row in rows.rows],
        "information": [table.encode(each) for each in rows.information],
        "reasons": rows.reasons,
        "matvecs": rows.matvecs,
        "separate": rows.separate,
        "uneven": {str(index): table.encode(each) for index, each in rows.uneven.items()},
        "objects": table.objects,
        "findings": [finding.model_dump(mode="json") for finding in findings],
    }


def decode(document: dict[str, Any]) -> tuple[BatchRows, list[CheckFinding]]:
    """What was encoded.

    Raises:
        ValueError: it isn't such a document.
        KeyError: likewise.
        TypeError: likewise.
    """
    table = _Reader(document["objects"])
    rows = BatchRows(
        rows=[SampleRow.model_validate(row) for row in document["rows"]],
        information=[table.decode(each) for each in document["information"]],
        reasons=dict(document["reasons"]),
        matvecs=int(document["matvecs"]),
        separate=int(document["separate"]),
        uneven={int(index): table.decode(each) for index, each in document["uneven"].items()},
    )
    return rows, [CheckFinding.model_validate(finding) for finding in document["findings"]]


@cache
def _arguments(name: str) -> list[str]:
    """What an object of a class is made from; it keeps each under the argument's name."""
    return list(inspect.signature(_CLASSES[name]).parameters)


@final
class _Writer:
    """Values to JSON; objects go to the table, those that they are made from before them."""

    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []
        # Objects are kept, so that their ids stay theirs.
        self._places: dict[int, tuple[int, object]] = {}

    def encode(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int | np.integer):
            return int(value)
        if isinstance(value, float | np.floating):
            return float(value) if math.isfinite(value) else {"number": repr(float(value))}
        if isinstance(value, np.ndarray):
            content = np.ascontiguousarray(value, dtype="<f8").tobytes()
            encoded = {"array": base64.b64encode(content).decode(), "shape": list(value.shape)}
            # Sums of products are rounded as their terms lie in memory.
            return encoded if value.flags.c_contiguous else {**encoded, "columns_first": True}
        if isinstance(value, list | tuple):
            return [self.encode(each) for each in value]
        if id(value) not in self._places:
            name = type(value).__name__
            made_from = {argument: self.encode(getattr(value, argument)) for argument in _arguments(name)}
            self.objects.append({"class": name, **made_from})
            self._places[id(value)] = len(self.objects) - 1, value
        return {"object": self._places[id(value)][0]}


@final
class _Reader:
    """The reverse."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self._objects: list[Any] = []
        for each in objects:
            name = each["class"]
            self._objects.append(
                _CLASSES[name](**{argument: self.decode(each[argument]) for argument in _arguments(name)})
            )

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "number" in value:
            return float(value["number"])
        if "array" in value:
            array = np.frombuffer(base64.b64decode(value["array"]), dtype="<f8")
            order: Literal["C", "F"] = "F" if value.get("columns_first") else "C"
            return array.reshape(value["shape"]).astype(np.float64, order=order)
        return self._objects[value["object"]]
