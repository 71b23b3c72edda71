"""Categories of a table searched for as mixtures of their codes, so that gradients lead from one to another.

A category's inputs are softmax(logits) @ codes (Vero et al., ICML 2023, section 4.1), numbers are themselves. The rows
of a `Function` are then guesses at numbers and logits; its values and gradients are those of the inputs that they stand
for. Inputs without an encoding are numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Observation
from riskaudit.attacks.optimise.minimisers import Function
from riskaudit.attacks.optimise.objectives import Objective
from riskaudit.attacks.optimise.regularisers import Penalty, Regulariser
from riskaudit.tables import TableEncoding

# Logits of what is decided: softmax leaves nothing of the others.
DECIDED = 60.0


@final
@dataclass(frozen=True, eq=False)
class Mixtures:
    """How the d inputs of a sample follow from its numbers and logits.

    Attributes:
        dimension: d.
        encoding: of the table; None where all inputs are numbers.
    """

    dimension: int
    encoding: TableEncoding | None

    @cached_property
    def codes(self) -> list[tuple[slice, Tensor]]:
        """Of each category, its inputs' positions and its codes [K, width]."""
        categories = [] if self.encoding is None else self.encoding.categories
        return [(category.span, torch.as_tensor(category.codes)) for category in categories]

    @cached_property
    def numbers(self) -> list[int]:
        """Positions of the inputs that are no category's."""
        taken = {position for span, _ in self.codes for position in range(span.start, span.stop)}
        return [position for position in range(self.dimension) if position not in taken]

    @property
    def size(self) -> int:
        """Numbers and logits of a sample together, u."""
        return len(self.numbers) + sum(len(codes) for _, codes in self.codes)

    def places(self, position: int, span: slice) -> slice:
        """Where one sample's inputs of a category are in those of an upload [n d]."""
        first = position * self.dimension
        return slice(first + span.start, first + span.stop)

    def distributions(self, points: Tensor) -> list[Tensor]:
        """Of each category, how likely each code is taken to be: points [..., u] to [..., K]."""
        sizes = [len(self.numbers), *(len(codes) for _, codes in self.codes)]
        return [part.softmax(-1) for part in torch.split(points, sizes, -1)[1:]]

    def inputs(self, points: Tensor) -> Tensor:
        """Inputs [..., d] of points [..., u], differentiable."""
        return self._put(points[..., : len(self.numbers)], self.distributions(points))

    def decided(self, numbers: Tensor, distributions: list[Tensor]) -> Tensor:
        """Inputs [..., d] of numbers and the likeliest code of each category."""
        hard = [torch.nn.functional.one_hot(each.argmax(-1), each.shape[-1]).to(each) for each in distributions]
        return self._put(numbers, hard)

    def points(self, inputs: Tensor) -> Tensor:
        """Points [..., u] that stand for inputs [..., d], each category's decided for the nearest code."""
        parts = [inputs[..., self.numbers]]
        for span, codes in self.codes:
            nearest = (inputs[..., None, span] - codes.to(inputs)).square().sum(-1).argmin(-1)
            parts.append(DECIDED * torch.nn.functional.one_hot(nearest, len(codes)).to(inputs))
        return torch.cat(parts, -1)

    def _put(self, numbers: Tensor, distributions: list[Tensor]) -> Tensor:
        parts = [numbers] + [each @ codes.to(each) for each, (_, codes) in zip(distributions, self.codes, strict=True)]
        places = self.numbers + [position for span, _ in self.codes for position in range(span.start, span.stop)]
        order = torch.tensor(places, device=numbers.device).argsort()
        return torch.cat(parts, -1)[..., order]


@final
@dataclass(frozen=True, eq=False)
class MixtureObjective(Function):
    """An objective of inputs at points [R, n u] of n samples.

    Attributes:
        objective: of inputs.
        mixtures: how they follow from points.
    """

    objective: Objective
    mixtures: Mixtures

    @override
    def evaluate(self, points: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            variable = points.detach().requires_grad_()
            inputs = self.mixtures.inputs(variable.reshape(len(points), -1, self.mixtures.size)).flatten(1)
            value, slope = self.objective.evaluate(inputs.detach(), share)
            (gradient,) = torch.autograd.grad(inputs, variable, slope)
        return value, gradient

    @override
    def select(self, rows: list[int]) -> MixtureObjective:
        return MixtureObjective(self.objective.select(rows), self.mixtures)

    @override
    def released_together(self, finished: Tensor) -> Tensor:
        return self.objective.released_together(finished)


@final
@dataclass(frozen=True)
class NumbersPenalty(Regulariser):
    """-log p of the numbers up to a constant: sum of (z - mu)^2 / 2 s^2, each column's own where the encoding says."""

    is_density: bool = True

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        prior = observation.sample_prior()
        means, variances = prior.mean.clone(), prior.variance[:, None].expand(-1, observation.dimension).clone()
        for number in [] if observation.encoding is None else observation.encoding.numbers:
            if number.expected is not None:
                means[:, number.position], deviation = number.expected
                variances[:, number.position] = deviation**2
        for category in [] if observation.encoding is None else observation.encoding.categories:
            variances[:, category.span] = torch.inf
        return lambda inputs: 0.5 * ((inputs.flatten(1) - means).double().square() / variances).sum(-1)
