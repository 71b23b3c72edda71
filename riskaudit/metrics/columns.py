"""Columns of a table that a reconstruction has right: categories exactly, numbers within a tolerance.

Vero et al. (TabLeak), ICML 2023, section 5: a category counts where the nearest code is the right one, a number where
it is within 0.319 standard deviations of the column, between which a quarter of a normal column's values lie; the
metrics are shares of the columns. Only where an encoding says which inputs belong to which column.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.metrics.base import Metric, Subject, register

TOLERANCE = 0.319


class _OfTables(Metric):
    """Shares of columns."""

    source = "Vero et al. (TabLeak), ICML 2023, section 5"
    higher_is_better = True
    of_tables = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        if subject.encoding is None:
            self.reason = "the inputs are no table by an encoding"


@register
class CategoryMatch(_OfTables):
    """Share of the categories that are the right ones."""

    name = "category_match"
    title = "Categories right"
    order = 12
    units = "share of the categories"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        if subject.encoding is not None and not subject.encoding.categories:
            self.reason = "the table has no categories"

    @override
    def __call__(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        encoding = self.subject.encoding
        assert encoding is not None
        guess, target = (each.detach().flatten(1).double().cpu().numpy() for each in (reconstruction, truth))
        hits = [
            category.nearest(guess[:, category.span]) == category.nearest(target[:, category.span])
            for category in encoding.categories
        ]
        return torch.from_numpy(np.stack(hits).mean(axis=0))


@register
class NumberMatch(_OfTables):
    """Share of the numbers that are within 0.319 standard deviations of their column."""

    name = "number_match"
    title = "Numbers right"
    order = 14
    units = "share of the numbers"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        if subject.encoding is not None and not self._tolerances():
            self.reason = "the encoding says of no column of numbers how much its values vary"

    def _tolerances(self) -> list[tuple[int, float]]:
        """Positions of inputs, and how far off they may be."""
        numbers = [] if self.subject.encoding is None else self.subject.encoding.numbers
        return [(number.position, TOLERANCE * number.expected[1]) for number in numbers if number.expected is not None]

    @override
    def __call__(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        positions, tolerances = zip(*self._tolerances(), strict=True)
        guess, target = reconstruction.detach().flatten(1).double().cpu(), truth.detach().flatten(1).double().cpu()
        off = (guess - target).abs()[:, list(positions)]
        return (off <= torch.tensor(tolerances, dtype=torch.float64)).double().mean(1)
