"""What an attacker prefers among inputs whose releases match: priors and image regularisers.

Total variation: Rudin, Osher and Fatemi 1992, in the anisotropic form of Geiping et al., NeurIPS 2020. Squared norm:
Yin et al., CVPR 2021, Eq. 8. Gaussian prior and pixel range: Balunovic et al., ICLR 2022, section 5. All are means or
sums over one input, in float64. ``batch_norms`` and ``consensus`` have those that look at more than one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Observation

Penalty: TypeAlias = Callable[[Tensor], Tensor]
"""Guesses [R n, *S] at the samples of uploads to penalties [R n], float64, differentiable."""


class Regulariser(ABC):
    """A penalty on guesses."""

    couples: bool = False
    """Whether rows of one sample see each other."""
    is_density: bool = False
    """Whether it is -log p of one input, so that those of an upload add up; of others the mean counts."""

    @abstractmethod
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        """The penalty for R rows.

        Args:
            observation: of the rows.
            samples: the number of the sample that each guess is one at, [R n].
        """


@final
@dataclass(frozen=True)
class TotalVariation(Regulariser):
    """Absolute differences of neighbouring pixels, along rows and columns; 0 for inputs that aren't images.

    Attributes:
        reduction: "mean" over each direction, as in Geiping et al.'s code, or "sum" over all.
    """

    reduction: Literal["mean", "sum"] = "mean"

    @property
    @override
    def is_density(self) -> bool:  # type: ignore[override]
        return self.reduction == "sum"

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        if not has_pixels(observation.input_shape):
            return nothing
        reduce = torch.mean if self.reduction == "mean" else torch.sum

        def variation(inputs: Tensor) -> Tensor:
            pixels, total = inputs.double(), inputs.new_zeros(len(inputs), dtype=torch.float64)
            for axis in (-1, -2):
                if pixels.shape[axis] > 1:
                    total = total + reduce(pixels.diff(dim=axis).abs().flatten(1), dim=1)
            return total

        return variation


@final
@dataclass(frozen=True)
class SquaredNorm(Regulariser):
    """Half the mean square of the displacement from the prior's mean.

    The paper's pixels are normalised, so that their mean is 0.
    """

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        mean = observation.sample_prior().mean
        return lambda inputs: 0.5 * (inputs.flatten(1) - mean).double().square().mean(-1)


@final
@dataclass(frozen=True)
class GaussianPenalty(Regulariser):
    """-log p of the observation's own prior N(mu, L L^T) up to a constant: ||L^-1 (z - mu)||^2 / 2."""

    is_density: bool = True

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        prior = observation.sample_prior()

        def penalty(inputs: Tensor) -> Tensor:
            points = inputs.flatten(1)
            with torch.no_grad():
                whitened = prior.inverse_root(points - prior.mean)
                gradient = prior.inverse_root(whitened)
            # L^-1 may be made without a graph; the gradient C^-1 (z - mu) of the square is known.
            linear = (gradient * (points - points.detach())).double().sum(-1)
            return 0.5 * whitened.double().square().sum(-1) + linear

        return penalty


@final
@dataclass(frozen=True)
class LaplacePenalty(Regulariser):
    """-log p of independent Laplace coordinates up to a constant: sqrt(2) |z - mu| / std, summed.

    Mean and standard deviation are those of the observation's own prior: mu, and sqrt(tr C / d) for all coordinates.
    """

    is_density: bool = True

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        prior = observation.sample_prior()
        scale = (prior.variance / 2).sqrt()
        return lambda inputs: (inputs.flatten(1) - prior.mean).double().abs().sum(-1) / scale


@final
@dataclass(frozen=True)
class PixelRange(Regulariser):
    """||z - clip(z)||_2^2, the squares by which coordinates leave the range of the inputs; 0 where it isn't known."""

    is_density: bool = True

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        return _of_excess(observation, lambda excess: excess.square().sum(-1))


@final
@dataclass(frozen=True)
class RangeDistance(Regulariser):
    """||z - clip(z)||_2, the distance from the range of the inputs; 0 where it isn't known.

    Balunovic et al., ICLR 2022, appendix A.4.
    """

    is_density: bool = True

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        return _of_excess(observation, lambda excess: torch.linalg.vector_norm(excess, dim=-1))


def _of_excess(observation: Observation, size: Penalty) -> Penalty:
    """The size of z - clip(z) [R n, d], by how much each coordinate lies outside the range of the inputs."""
    if observation.input_range is None:
        return nothing
    low, high = observation.input_range

    def penalty(inputs: Tensor) -> Tensor:
        points = inputs.flatten(1).double()
        return size(points - points.clamp(low, high))

    return penalty


def has_pixels(input_shape: tuple[int, ...]) -> bool:
    """Whether inputs are images: [H, W] or [C, H, W] with neighbours in some direction."""
    return len(input_shape) in (2, 3) and max(input_shape[-2:]) > 1


def nothing(inputs: Tensor) -> Tensor:
    """0 with a graph, so that a gradient can be asked for."""
    return (0 * inputs.flatten(1)).double().sum(-1)
