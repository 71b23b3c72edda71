"""An operator that lets go of the samples that are done, when that pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from riskaudit.linalg.operators import LinearOperator

# Asked before every product: True ends an iteration early, with what is there.
Deadline = Callable[[], bool]


@final
class ActiveOperator:
    """A square operator narrowed to the samples still at work.

    Narrowing costs something (an operator may hold a graph of its batch), so it is done only when at
    most half of the samples in it are still active: log2(B) times at most, and never more than twice
    the products that are needed.

    Attributes:
        operator: of the samples in it.
        rows: their positions in the whole batch, in order.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.rows = list(range(operator.num_samples))

    def narrow(self, active: Sequence[bool]) -> list[int] | None:
        """Let go of the samples that have left, if at most half of those in it are active.

        Args:
            active: one flag for each of ``rows``.

        Returns:
            The positions that stay, among the former ``rows``; None where nothing changed.
        """
        remaining = [position for position, working in enumerate(active) if working]
        if not remaining or 2 * len(remaining) > len(self.rows):
            return None
        self.operator = self.operator.select(remaining)
        self.rows = [self.rows[position] for position in remaining]
        return remaining

    def matvec(self, vector: Tensor, active: Tensor) -> Tensor:
        """One product for every active sample of the whole batch: [B, n] to [B, n].

        Args:
            vector: [B, n].
            active: [B]; a sample that has left once may not come back.

        Returns:
            Rows of samples that have left hold anything finite.
        """
        flags = active.tolist()
        self.narrow([flags[row] for row in self.rows])
        if len(self.rows) == len(vector):
            return self.operator.matvec(vector)
        product = torch.zeros_like(vector)
        product[self.rows] = self.operator.matvec(vector[self.rows])
        return product
