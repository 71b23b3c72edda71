"""How far a guess's release is from the observed one: the first term of every attack's objective.

L2: Zhu et al., NeurIPS 2019, Eq. 2. Cosine: Geiping et al., NeurIPS 2020, Eq. 4. Likelihood: Balunovic et al., ICLR
2022, section 4: the right distance for Gaussian noise is L2, for Laplace noise L1, and entries that carry no
information don't count. Sums are taken in float64 whatever the release's dtype.
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
from riskaudit.release import Noise, Release
from riskaudit.release.noise import Law

Measure: TypeAlias = Callable[[Tensor], Tensor]
"""Release means r(z) [R, P] to distances [R], float64, differentiable."""

LayerWeights: TypeAlias = Literal["equal", "linear", "exponential"]


class Matching(ABC):
    """A distance between releases."""

    @abstractmethod
    def bind(self, observation: Observation) -> Measure:
        """The distance from the R observed releases."""


@final
@dataclass(frozen=True)
class SquaredDistance(Matching):
    """||r(z) - obs||^2."""

    @override
    def bind(self, observation: Observation) -> Measure:
        observed = observation.released
        return lambda released: (released - observed).double().square().sum(-1)


@final
@dataclass(frozen=True)
class CosineDistance(Matching):
    """1 - <r(z), obs> / (||r(z)|| ||obs||), every parameter weighted.

    Attributes:
        layer_weights: of the parameters in the model's order: all the same; falling linearly from 1 to 1 / n; or
            falling by a factor e each. The last two are options of Geiping et al.'s code: early layers see more
            of the image.
    """

    layer_weights: LayerWeights = "equal"

    @override
    def bind(self, observation: Observation) -> Measure:
        weights = entry_weights(observation.release, self.layer_weights)
        observed = observation.released.double()
        tiny = torch.finfo(observation.released.dtype).tiny
        weighted = observed * weights
        norm = (weighted * observed).sum(-1).sqrt()

        def distance(released: Tensor) -> Tensor:
            candidate = released.double()
            squared = (candidate * candidate * weights).sum(-1)
            # A release of zero has no direction; its distance is 1 with a gradient of zero.
            candidate_norm = squared.clamp_min(tiny).sqrt()
            return 1 - (weighted * candidate).sum(-1) / (candidate_norm * norm.clamp_min(tiny))

        return distance


@final
@dataclass(frozen=True)
class NegativeLogLikelihood(Matching):
    """-log p(obs | z) by the release's own noise law, summed over the entries that carry noise.

    Attributes:
        reference_std: std of the noise that stands in where the release has none, per released entry.
        law: that the attacker takes the noise to have, with the standard deviation of the release's own; None for
            the release's own law.
    """

    reference_std: float = 1e-3
    law: Law | None = None

    def noise(self, release: Release) -> Noise:
        """The noise that the attacker takes the release to have."""
        noise = release.noise or Noise("gaussian", self.reference_std)
        return noise if self.law is None else Noise(self.law, noise.std / Noise(self.law, 1.0).std)

    @override
    def bind(self, observation: Observation) -> Measure:
        noise, observed = self.noise(observation.release), observation.released
        noisy = observation.release.noisy_entries.double()
        return lambda released: -noise.log_density((observed - released).double(), noisy)


def entry_weights(release: Release, kind: LayerWeights) -> Tensor:
    """Weights of the released entries by the parameter they belong to, [P], float64; the first parameter's is 1."""
    sizes = torch.tensor([shape.numel() for shape in release.sent.shapes.values()])
    positions = torch.arange(len(sizes), dtype=torch.float64)
    weights = {
        "equal": torch.ones_like(positions),
        "linear": 1 - positions / len(sizes),
        "exponential": torch.exp(-positions),
    }[kind]
    return weights.repeat_interleave(sizes).to(release.device)
