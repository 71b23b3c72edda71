"""First-order descent of all rows at once: Adam, by gradients or by their signs, with step decay and a box.

Adam: Kingma and Ba, ICLR 2015, Algorithm 1. Signed gradients, the box and the decay by 0.1 at 3/8, 5/8 and 7/8
of the steps: Geiping et al., NeurIPS 2020, section 5 and their code. Warm-up and cosine decay: Yin et al., CVPR
2021, section 4.1. Exponential decay: Balunovic et al., ICLR 2022, section 6. All of them act coordinate by coordinate,
so a row goes the same way in any batch.

A row that stagnates goes on with the next smaller step before its time; with the smallest it is finished.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.optimise.minimisers import BestPoints, Function, Minimiser, Minimum, Stagnation

Schedule: TypeAlias = Literal["constant", "steps", "cosine", "exponential"]

# Adam's own constants.
BETAS, EPSILON = (0.9, 0.999), 1e-8
MILESTONES, DECAY = (3 / 8, 5 / 8, 7 / 8), 0.1


@final
@dataclass(frozen=True)
class Descent(Minimiser):
    """Adam on every row.

    Attributes:
        steps: at most.
        rate: step size, times the row's unit.
        signed: go by the sign of the gradient.
        schedule: of the step size.
        warm_up: steps over which the step size grows from nothing.
        box: least and greatest value of a coordinate; None for no box.
        tolerance: a relative fall of the objective below which it stagnates.
        patience: steps of stagnation that end a row or its present step size.
        settled: share of the steps before which no row may end, since the objective still changes.
        last: share of the step size that exponential decay leaves at the end.
        latest: whether rows end where they are, and not at the best point that they passed; for random objectives.
    """

    steps: int
    rate: float = 0.1
    signed: bool = False
    schedule: Schedule = "constant"
    warm_up: int = 0
    box: tuple[float, float] | None = None
    tolerance: float = 1e-5
    patience: int = 200
    settled: float = 0.0
    last: float = DECAY ** len(MILESTONES)
    latest: bool = False

    @override
    def minimise(self, function: Function, start: Tensor, unit: Tensor | None = None) -> Minimum:
        units = start.new_ones(len(start)) if unit is None else unit.to(start)
        state = _AdamState(self, function, self._boxed(start), units)
        record = BestPoints(start, latest=self.latest)
        for step in range(self.steps + 1):
            value, gradient = state.function.evaluate(state.points, step / max(self.steps, 1))
            record.update(state.points, value, step)
            finite = torch.isfinite(value) & torch.isfinite(gradient).all(-1)
            record.finish(record.active & ~finite, converged=False)
            record.finish(state.finished(value, step), converged=True)
            if step == self.steps or not bool(record.active.any()):
                break
            remaining = record.narrow()
            if remaining is not None:
                state.select(remaining)
                gradient = gradient[remaining]
            state.move(gradient, step)
        return record.outcome()

    def _boxed(self, points: Tensor) -> Tensor:
        return points if self.box is None else points.clamp(*self.box)

    def factor(self, step: int) -> float:
        """Of the step size, by warm-up and cosine decay; other decay is each row's own."""
        warm = min(1.0, (step + 1) / (self.warm_up + 1))
        if self.schedule != "cosine":
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * step / max(self.steps, 1)))

    def left(self, step: int, level: Tensor) -> Tensor:
        """Share of the step size that decay leaves rows at these levels, [R], float64."""
        by_level = torch.full(level.shape, DECAY, dtype=torch.float64, device=level.device).pow(level)
        if self.schedule != "exponential":
            return by_level
        return by_level.clamp_max(self.last ** (step / max(self.steps, 1)))

    @property
    def smallest(self) -> float:
        """Share of the step size that decay leaves at the end."""
        return {"exponential": self.last, "steps": DECAY ** len(MILESTONES)}.get(self.schedule, 1.0)

    @property
    def milestones(self) -> list[int]:
        """Steps at which the step size falls, or has fallen, by a tenth more."""
        if self.schedule == "exponential":
            tenths = math.log(self.last, DECAY)
            return [round(fall / tenths * self.steps) for fall in range(1, math.ceil(tenths))]
        return [round(share * self.steps) for share in MILESTONES] if self.schedule == "steps" else []


class _AdamState:
    """The rows held: where they are, and what Adam remembers of them."""

    def __init__(self, how: Descent, function: Function, points: Tensor, units: Tensor) -> None:
        self.how, self.function, self.points, self.units = how, function, points, units
        self.first, self.second = torch.zeros_like(points), torch.zeros_like(points)
        self.level = torch.zeros(len(points), dtype=torch.long, device=points.device)
        self.stagnation = Stagnation(len(points), how.tolerance, how.patience, points.device)

    def finished(self, value: Tensor, step: int) -> Tensor:
        """Rows that stagnate at the smallest step size, or that can't get better, [rows held]."""
        stalled = self.stagnation.update(value)
        passed = sum(step >= milestone for milestone in self.how.milestones)
        fell = self.level < passed
        self.level = self.level.clamp_min(passed)
        if step < self.how.settled * self.how.steps:
            self.stagnation.reset(torch.ones_like(stalled))
            return torch.zeros_like(stalled)
        # Exponential decay only comes near to its end before the steps are over.
        last = self.how.left(step, self.level) < self.how.smallest / DECAY**0.5
        early = stalled & ~last
        self.level = self.level + early.long()
        self.stagnation.reset(early | fell)
        return self.function.released_together((stalled & last & ~fell) | (value == 0))

    def move(self, gradient: Tensor, step: int) -> None:
        """One step of Adam, and back into the box."""
        if self.how.signed:
            gradient = gradient.sign()
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * gradient
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * gradient.square()
        first = self.first / (1 - BETAS[0] ** (step + 1))
        second = self.second / (1 - BETAS[1] ** (step + 1))
        rate = self.how.rate * self.how.factor(step) * self.units * self.how.left(step, self.level).to(self.units)
        self.points = self.how._boxed(self.points - rate[:, None] * first / (second.sqrt() + EPSILON))

    def select(self, rows: list[int]) -> None:
        """Keep some of the rows held."""
        self.function = self.function.select(rows)
        self.points, self.units, self.level = self.points[rows], self.units[rows], self.level[rows]
        self.first, self.second = self.first[rows], self.second[rows]
        self.stagnation.select(rows)
