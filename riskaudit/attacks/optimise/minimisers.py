"""What every minimiser of the attacks shares: R rows (samples x restarts), each with an objective of its own.

A row is one guess at one sample. Rows don't know of each other, stop on their own, and leave the batch once
at most half of those held are still at work, as samples do in `riskaudit.linalg`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riskaudit.results import Status


class Function(ABC):
    """One objective per row."""

    @abstractmethod
    def evaluate(self, points: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Objective and the gradient to go down by.

        Args:
            points: guesses [R, n].
            share: of the steps that are over; the gradient may be that of an easier objective at first, the
                values are always those of the final one, so that they can be compared.

        Returns:
            Values [R], float64, and gradients [R, n] in the dtype of the points.
        """

    @abstractmethod
    def select(self, rows: list[int]) -> Function:
        """The objectives of some rows, in the order given."""

    @abstractmethod
    def released_together(self, finished: Tensor) -> Tensor:
        """Which of the finished rows [R] may leave: where rows see each other, only all of them at once."""


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where R rows ended.

    Attributes:
        points: the best point of every row, [R, n].
        value: the objective there, [R], float64; infinite where it never was finite.
        status: "converged", "not_converged" where the steps were used up, "failed" where no value was finite.
        steps: that the row took, [R].
    """

    points: Tensor
    value: Tensor
    status: tuple[Status, ...]
    steps: Tensor


class Minimiser(ABC):
    """Goes down from a start."""

    @abstractmethod
    def minimise(self, function: Function, start: Tensor, unit: Tensor | None = None) -> Minimum:
        """Minimise every row on its own.

        Args:
            function: the objectives.
            start: [R, n].
            unit: what a step size of 1 means in data units, [R]; None for 1.
        """


class BestPoints:
    """The best that is known of all R rows, or the latest, and which of them are still at work.

    Args:
        start: [R, n].
        latest: whether the latest point counts, not the best: the least of random values is luck.
    """

    def __init__(self, start: Tensor, *, latest: bool = False) -> None:
        count = len(start)
        self.latest = latest
        self.points = start.clone()
        self.value = torch.full((count,), torch.inf, dtype=torch.float64, device=start.device)
        self.steps = torch.zeros(count, dtype=torch.long, device=start.device)
        self.converged = torch.zeros(count, dtype=torch.bool, device=start.device)
        self.rows = list(range(count))
        self.active = torch.ones(count, dtype=torch.bool, device=start.device)

    def update(self, points: Tensor, value: Tensor, steps: int | Tensor) -> None:
        """Note a point of every held row, where it is better (or later) than what was known of a row at work."""
        rows = torch.tensor(self.rows, device=value.device)
        self.steps[rows] = torch.where(self.active, steps, self.steps[rows])
        better = self.active & torch.isfinite(value)
        if not self.latest:
            better = better & (value < self.value[rows])
        self.points[rows[better]] = points[better]
        self.value[rows[better]] = value[better]

    def finish(self, finished: Tensor, *, converged: bool) -> None:
        """End some of the held rows, [rows held]."""
        rows = torch.tensor(self.rows, device=finished.device)
        ending = finished & self.active
        self.converged[rows[ending]] = converged
        self.active = self.active & ~finished

    def narrow(self) -> list[int] | None:
        """Let go of finished rows if at most half of those held are at work; the places kept, or None."""
        remaining = torch.nonzero(self.active).flatten().tolist()
        if not remaining or 2 * len(remaining) > len(self.rows):
            return None
        self.rows = [self.rows[position] for position in remaining]
        self.active = self.active[remaining]
        return remaining

    def outcome(self) -> Minimum:
        """What came out."""
        finite = torch.isfinite(self.value).tolist()
        return Minimum(self.points, self.value, tuple(map(_status, finite, self.converged.tolist())), self.steps)


def _status(finite: bool, converged: bool) -> Status:
    if not finite:
        return "failed"
    return "converged" if converged else "not_converged"


class Stagnation:
    """Counts the steps since a row's objective last fell by a share ``tolerance`` of itself.

    Args:
        count: rows R.
        tolerance: the least fall that counts, relative to the objective.
        patience: steps without one that end a row.
    """

    def __init__(self, count: int, tolerance: float, patience: int, device: torch.device) -> None:
        self.tolerance, self.patience = tolerance, patience
        self.reference = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
        self.since = torch.zeros(count, dtype=torch.long, device=device)

    def update(self, value: Tensor, counted: Tensor | None = None) -> Tensor:
        """Take note of objectives [R]; returns the rows that stagnate, [R]. Rows not ``counted`` stay as they are."""
        # An infinite reference times the tolerance is no number.
        slack = torch.where(torch.isfinite(self.reference), self.tolerance * self.reference.abs(), 0.0)
        fell = value < self.reference - slack
        since = torch.where(fell, 0, self.since + 1)
        self.reference = torch.where(fell if counted is None else fell & counted, value, self.reference)
        self.since = since if counted is None else torch.where(counted, since, self.since)
        return self.since >= self.patience

    def reset(self, rows: Tensor) -> None:
        """Begin again for some rows, [R].

        What larger steps may have come across on their way is no measure for smaller ones.
        """
        self.since = torch.where(rows, 0, self.since)
        self.reference = torch.where(rows, torch.inf, self.reference)

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows."""
        self.reference, self.since = self.reference[list(rows)], self.since[list(rows)]
