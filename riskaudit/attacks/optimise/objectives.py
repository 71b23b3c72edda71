"""An attack's objective at R guesses: a matching distance plus weighted regularisers, value and gradient.

The gradient of D(r(z), obs) with respect to z is J(z)^T u with u = dD/dr, so it is read off the Jacobian of the
release at the guess: one product, by layers where the layers are known, whatever the pipeline does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Observation
from riskaudit.attacks.matching import Matching, Measure
from riskaudit.attacks.optimise.minimisers import Function
from riskaudit.attacks.optimise.regularisers import Penalty, Regulariser
from riskaudit.attacks.optimise.sampling import Sampling
from riskaudit.jacobian.base import CHUNK_ENTRIES

# Share of the steps over which the weight of the matching may grow.
ANNEALED = 0.5


@dataclass(frozen=True)
class Term:
    """A regulariser with its weight.

    Attributes:
        regulariser: what is penalised.
        weight: of the penalty.
    """

    regulariser: Regulariser
    weight: float


@final
@dataclass(frozen=True, eq=False)
class Objective(Function):
    """weight D(r(z), obs) + sum of the terms, for rows that are uploads x restarts.

    Attributes:
        observation: of every row; its targets are known.
        samples: the number of the upload that each row is a guess at, [R].
        matching: D.
        terms: regularisers.
        matching_weight: of D.
        first_matching_weight: where the gradient's weight of D begins; it changes geometrically over the first half of
            the steps. None where it doesn't change.
        sampling: points around the guess over which the whole is averaged, and noise on the gradient; None for neither.
    """

    observation: Observation
    samples: Tensor
    matching: Matching
    terms: tuple[Term, ...] = ()
    matching_weight: float = 1.0
    first_matching_weight: float | None = None
    sampling: Sampling | None = None

    @classmethod
    def of(
        cls,
        observation: Observation,
        restarts: int,
        matching: Matching,
        terms: tuple[Term, ...] = (),
        *,
        matching_weight: float = 1.0,
        first_matching_weight: float | None = None,
        sampling: Sampling | None = None,
    ) -> Objective:
        """The objective of ``restarts`` rows for each sample; rows of one sample stand together."""
        rows = [index for index in range(len(observation)) for _ in range(restarts)]
        samples = torch.tensor(rows, device=observation.released.device)
        repeated = observation.select(rows)
        return cls(repeated, samples, matching, terms, matching_weight, first_matching_weight, sampling)

    @override
    def evaluate(self, points: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        if self.sampling is None:
            return self._evaluate_at(points, share)
        values, gradients = zip(*(self._evaluate_at(each, share) for each in self.sampling.around(points)), strict=True)
        return torch.stack(values).mean(0), self.sampling.disturbed(torch.stack(gradients).mean(0))

    def matching_weight_at(self, share: float) -> float:
        """The weight of D in the gradient when a share of the steps is over."""
        if self.first_matching_weight is None or share >= ANNEALED:
            return self.matching_weight
        ratio = self.matching_weight / self.first_matching_weight
        return self.first_matching_weight * math.pow(ratio, share / ANNEALED)

    @override
    def select(self, rows: list[int]) -> Objective:
        sampling = None if self.sampling is None else self.sampling.select(rows)
        observation = self.observation.select(rows)
        return replace(self, observation=observation, samples=self.samples[rows], sampling=sampling)

    @property
    def couples(self) -> bool:
        """Whether rows of one sample see each other."""
        return any(term.regulariser.couples for term in self.terms)

    @override
    def released_together(self, finished: Tensor) -> Tensor:
        if not self.couples:
            return finished
        working = torch.bincount(self.samples, weights=(~finished).double())
        return working[self.samples] == 0

    def _evaluate_at(self, points: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """The objective at the points themselves, and its gradient."""
        value, gradient = self._matched_at(points)
        value, gradient = self.matching_weight * value, self.matching_weight_at(share) * gradient
        for term, penalty in zip(self.terms, self._penalties, strict=True):
            penalty_value, slope = self._penalised(term.regulariser, penalty, points)
            value = value + term.weight * penalty_value
            gradient = gradient + term.weight * slope
        return value, gradient

    def _matched_at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = [], []
        for rows, observation, measure in self._chunks:
            jacobian = observation.at(points[rows].detach())
            with torch.enable_grad():
                released = jacobian.mean().detach().requires_grad_()
                value = measure(released)
                (cotangent,) = torch.autograd.grad(value.sum(), released)
            values.append(value.detach())
            gradients.append(jacobian.rmatvec(cotangent).detach())
        return torch.cat(values), torch.cat(gradients)

    def _penalised(self, regulariser: Regulariser, penalty: Penalty, points: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            inputs = points.detach().requires_grad_()
            of_images = penalty(self.observation.images(inputs)).reshape(len(points), -1)
            value = of_images.sum(1) if regulariser.is_density else of_images.mean(1)
            (gradient,) = torch.autograd.grad(value.sum(), inputs)
        return value.detach(), gradient

    @cached_property
    def _penalties(self) -> list[Penalty]:
        size = self.observation.upload_size
        slots = torch.arange(size, device=self.samples.device)
        samples = (size * self.samples[:, None] + slots).flatten()
        return [term.regulariser.bind(self.observation, samples) for term in self.terms]

    @cached_property
    def _chunks(self) -> list[tuple[list[int], Observation, Measure]]:
        """Rows in parts whose released vectors fit in memory."""
        count = len(self.samples)
        size = max(1, CHUNK_ENTRIES // self.observation.release.num_entries)
        parts = [list(range(first, min(first + size, count))) for first in range(0, count, size)]
        observations = [self.observation if len(part) == count else self.observation.select(part) for part in parts]
        return [
            (part, observation, self.matching.bind(observation))
            for part, observation in zip(parts, observations, strict=True)
        ]
