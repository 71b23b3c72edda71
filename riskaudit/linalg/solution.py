"""What every solver returns: a value with what is known of it, per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from riskaudit.results import Status


@dataclass(frozen=True)
class Solution:
    """The outcome of a batched solve.

    Attributes:
        value: [B] for an eigenvalue, [B, n] for the solution of a linear system.
        low: [B] or None. Certified lower end of an eigenvalue, or of the solution's 2-norm.
        high: [B] or None. Upper end likewise; of an eigenvalue it holds with the solver's confidence.
        status: per sample "exact", "converged", "not_converged" or "singular".
        residual: [B] relative residual of the returned value.
        matvecs: [B] matrix products that this sample needed.
    """

    value: Tensor
    low: Tensor | None
    high: Tensor | None
    status: tuple[Status, ...]
    residual: Tensor
    matvecs: Tensor


@dataclass(frozen=True)
class Interval:
    """A number with the ends between which it lies; how surely is documented where an interval is returned."""

    value: float
    low: float
    high: float

    def map(self, increasing: Callable[[float], float]) -> Interval:
        """That of an increasing function of the number."""
        return Interval(increasing(self.value), increasing(self.low), increasing(self.high))


def statuses(converged: Tensor, singular: Tensor | None = None) -> tuple[Status, ...]:
    """Status per sample from flags [B]; "singular" wins."""
    flags = torch.zeros_like(converged) if singular is None else singular
    return tuple(
        "singular" if lost else "converged" if done else "not_converged"
        for done, lost in zip(converged.tolist(), flags.tolist(), strict=True)
    )
