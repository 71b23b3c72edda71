"""What an attacker prefers among inputs whose releases match: priors and image regularisers.

Total variation: Rudin, Osher and Fatemi 1992, in the anisotropic form of Geiping et al., NeurIPS 2020. Squared norm,
batch-norm statistics and group consistency: Yin et al., CVPR 2021, Eqs. 8 to 11. Gaussian prior and pixel range:
Balunovic et al., ICLR 2022, section 5. All are means or sums over one input, in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.attacks.base import Observation
from riskaudit.release import Release

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
            return _nothing
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
    """Sum of squares by which coordinates leave the range of the inputs; 0 where it isn't known."""

    is_density: bool = True

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        if observation.input_range is None:
            return _nothing
        low, high = observation.input_range

        def outside(inputs: Tensor) -> Tensor:
            points = inputs.flatten(1).double()
            return ((low - points).clamp_min(0).square() + (points - high).clamp_min(0).square()).sum(-1)

        return outside


@final
@dataclass(frozen=True)
class BatchNormStatistics(Regulariser):
    """Distance of each guess's own mean and variance, at every batch-norm layer, from the layer's running ones.

    Sum over layers of ||mean - running mean||_2 + ||variance - running variance||_2, over the positions of one
    input; without positions only the means. 0 without such layers, or where their statistics aren't those of the
    victim's data.
    """

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        release = observation.release
        if not observation.batch_norm_statistics or not _layers(release):
            return _nothing

        def distance(inputs: Tensor) -> Tensor:
            total = inputs.new_zeros(len(inputs), dtype=torch.float64)
            with _entering(release) as seen:
                release.run(release.parameters, inputs)
            for layer, values in seen:
                positions = values.flatten(2).double() if values.ndim > 2 else values[..., None].double()
                mean, variance = layer.running_mean, layer.running_var
                assert mean is not None
                assert variance is not None
                total = total + (positions.mean(-1) - mean.double()).norm(dim=-1)
                if positions.shape[-1] > 1:
                    total = total + (positions.var(-1, correction=0) - variance.double()).norm(dim=-1)
            return total

        return distance


@final
@dataclass(frozen=True)
class GroupConsistency(Regulariser):
    """Mean square of a guess's displacement from the average of all guesses at the same sample.

    The paper registers the guesses to each other first (RANSAC flow); the average is its "lazy" variant.
    """

    couples: bool = True

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        sizes = torch.bincount(samples)

        def spread(inputs: Tensor) -> Tensor:
            points = inputs.flatten(1).double()
            sums = points.new_zeros(len(sizes), points.shape[1]).index_add(0, samples, points.detach())
            consensus = sums[samples] / sizes[samples, None]
            return (points - consensus).square().mean(-1)

        return spread


def has_pixels(input_shape: tuple[int, ...]) -> bool:
    """Whether inputs are images: [H, W] or [C, H, W] with neighbours in some direction."""
    return len(input_shape) in (2, 3) and max(input_shape[-2:]) > 1


def _nothing(inputs: Tensor) -> Tensor:
    """0 with a graph, so that a gradient can be asked for."""
    return (0 * inputs.flatten(1)).double().sum(-1)


def _layers(release: Release) -> list[nn.modules.batchnorm._BatchNorm]:
    norms = [layer for layer in release.model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return [layer for layer in norms if layer.running_mean is not None]


@contextmanager
def _entering(release: Release) -> Iterator[list[tuple[nn.modules.batchnorm._BatchNorm, Tensor]]]:
    """Collects what enters each batch-norm layer of the model while it runs, [R, C, ...]."""
    seen: list[tuple[nn.modules.batchnorm._BatchNorm, Tensor]] = []

    def note(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
        seen.append((layer, arguments[0]))

    handles = [layer.register_forward_pre_hook(note) for layer in _layers(release)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
