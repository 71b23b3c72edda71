"""One proxy's estimates of many samples as arrays, since an object for each would take far more memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import final, get_args

from riskaudit.results.base import Estimate, Status

_STATUSES: tuple[Status, ...] = get_args(Status)
_CODES = {status: code for code, status in enumerate(_STATUSES)}


@final
class EstimateColumn:
    """Estimates with the places of their samples; iterated over in the order in which they were added."""

    def __init__(self) -> None:
        self._places, self._codes = array("Q"), array("B")
        # Values, lower and upper ends; numbers of estimates are finite, so that NaN can stand for None.
        self._numbers = (array("d"), array("d"), array("d"))

    def append(self, place: int, estimate: Estimate) -> None:
        """Add the estimate of the sample at a place."""
        self._places.append(place)
        self._codes.append(_CODES[estimate.status])
        for numbers, each in zip(self._numbers, (estimate.value, estimate.low, estimate.high), strict=True):
            numbers.append(math.nan if each is None else each)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Estimate]:
        for code, *numbers in zip(self._codes, *self._numbers, strict=True):
            value, low, high = (None if math.isnan(each) else each for each in numbers)
            # Checked when they were added.
            yield Estimate.model_construct(value=value, low=low, high=high, status=_STATUSES[code])

    def by_place(self) -> Iterator[tuple[int, Estimate]]:
        """The same with the places."""
        return zip(self._places, self, strict=True)
