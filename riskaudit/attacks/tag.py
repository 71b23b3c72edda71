"""``tag``: gradients of transformers matched by squared and absolute distance, over the embedded tokens.

Deng, Wang, Li, Wang, Shang, Liu, Rajasekaran and Ding, "TAG: Gradient Attack on Transformer-based Language Models",
Findings of EMNLP 2021, Eq. 5: ||dW' - dW||_2^2 + alpha(dW) ||dW' - dW||_1, by Adam over the embedded sequence, alpha
larger for layers nearer to the input. The paper leaves alpha's course open; as in a published reimplementation
(breaching) half the squared distance counts and alpha falls linearly over the parameters from its first value.

Departures: labels are known or recovered, not searched for; the step size is in the prior's standard deviations, since
embeddings of different models differ in size; weights of Adam don't decay, which would draw tokens towards zero.
Tokens are the vocabulary's nearest to what comes out, which metrics look up. On inputs that aren't texts it is the
same distance over those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Attack, Observation, Reconstruction, register
from riskaudit.attacks.matching import LayerWeights, Matching, Measure, entry_weights
from riskaudit.attacks.optimise.descent import Descent
from riskaudit.attacks.optimise.objectives import Objective
from riskaudit.attacks.optimise.search import reconstruct
from riskaudit.attacks.optimise.starts import Start


@final
@dataclass(frozen=True)
class SquaredAndAbsoluteDistance(Matching):
    """||r(z) - obs||^2 / 2 + sum_p alpha_p |r(z)_p - obs_p|.

    Attributes:
        alpha: of the first parameter's entries.
        layer_weights: course of alpha over the parameters.
    """

    alpha: float
    layer_weights: LayerWeights = "linear"

    @override
    def bind(self, observation: Observation) -> Measure:
        weights, observed = self.alpha * entry_weights(observation.release, self.layer_weights), observation.released

        def distance(released: Tensor) -> Tensor:
            difference = (released - observed).double()
            return 0.5 * difference.square().sum(-1) + (weights * difference.abs()).sum(-1)

        return distance


@register
@final
@dataclass(frozen=True)
class TransformerGradients(Attack):
    """Minimise the squared distance of releases plus alpha times the absolute one.

    Attributes:
        steps: of Adam at most.
        restarts: random starts per upload.
        rate: step size, in the prior's standard deviations; it falls by a cosine.
        alpha: weight of the absolute distance in the first parameter; 0 leaves the squared one alone.
        warm_up: steps over which the step size grows from nothing.
        start: kind of the first guesses.
    """

    name: ClassVar[str] = "tag"
    title: ClassVar[str] = "TAG"
    source: ClassVar[str] = "Deng et al., Findings of EMNLP 2021"
    summary: ClassVar[str] = "Texts: squared and absolute distance of gradients, by Adam over the embedded tokens."
    matching: ClassVar[Literal["l2", "cosine"] | None] = None
    grid: ClassVar[tuple[Mapping[str, object], ...]] = ({}, {"alpha": 0.01}, {"rate": 0.03}, {"alpha": 0.0})

    steps: int = 1000
    restarts: int = 1
    rate: float = 0.1
    alpha: float = 0.1
    warm_up: int = 50
    start: Start = "gaussian"

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        matching = SquaredAndAbsoluteDistance(self.alpha)
        return reconstruct(
            observation,
            generator,
            lambda labelled: Objective.of(labelled, self.restarts, matching),
            Descent(self.steps, self.rate, schedule="cosine", warm_up=self.warm_up),
            self.start,
            self.restarts,
        )
