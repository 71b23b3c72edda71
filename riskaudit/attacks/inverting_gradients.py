"""``inverting-gradients``: cosine distance and total variation by signed Adam in the box of pixel values.

Geiping, Bauermeister, Droege and Moeller, "Inverting Gradients", NeurIPS 2020, Eq. 4; step size 0.1 in normalised
pixels, decay by 0.1 at 3/8, 5/8 and 7/8 of 4800 steps, total variation 1e-6 as in their code for small images. For
networks with batch norm the distance from the statistics that are known is added, as Zhang et al., NeurIPS 2023,
appendix C.1, run it; without these statistics the attack is weaker (Huang et al., NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from typing_extensions import override

from riskaudit.attacks.base import Attack, Observation, Reconstruction, register
from riskaudit.attacks.matching import CosineDistance, LayerWeights
from riskaudit.attacks.optimise.batch_norms import BatchNormStatistics
from riskaudit.attacks.optimise.descent import Descent
from riskaudit.attacks.optimise.objectives import Objective, Term
from riskaudit.attacks.optimise.regularisers import TotalVariation
from riskaudit.attacks.optimise.search import reconstruct
from riskaudit.attacks.optimise.starts import Start


@register
@final
@dataclass(frozen=True)
class InvertingGradients(Attack):
    """Minimise 1 - cos(r(z), obs) + weight TV(z) + weight batch-norm distance(z).

    Attributes:
        steps: of Adam at most.
        restarts: random starts per sample.
        rate: step size in the prior's standard deviations.
        total_variation: weight of the mean absolute difference of neighbouring pixels.
        batch_norm: weight of the distance from the batch-norm statistics that are known.
        signed: whether to go by the gradient's signs.
        layer_weights: see `CosineDistance`.
        start: kind of the first guesses.
    """

    name: ClassVar[str] = "inverting-gradients"
    title: ClassVar[str] = "Inverting Gradients"
    source: ClassVar[str] = "Geiping et al., NeurIPS 2020"
    matching: ClassVar[Literal["l2", "cosine"] | None] = "cosine"
    summary: ClassVar[str] = "Cosine distance and total variation by signed Adam."
    grid: ClassVar[tuple[Mapping[str, object], ...]] = (
        {},
        {"total_variation": 1e-4},
        {"total_variation": 1e-2},
        {"total_variation": 1e-1},
        {"batch_norm": 1e-2},
        # Plain Adam with steps of a tenth of a pixel's range of 3 standard deviations.
        {"signed": False, "rate": 1 / 3},
    )

    steps: int = 4800
    restarts: int = 1
    rate: float = 0.1
    total_variation: float = 1e-6
    batch_norm: float = 0.1
    signed: bool = True
    layer_weights: LayerWeights = "equal"
    start: Start = "gaussian"

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        every = (Term(TotalVariation(), self.total_variation), Term(BatchNormStatistics(), self.batch_norm))
        terms = tuple(term for term in every if term.weight > 0)
        minimiser = Descent(self.steps, self.rate, self.signed, "steps", box=observation.input_range)
        return reconstruct(
            observation,
            generator,
            lambda labelled: Objective.of(labelled, self.restarts, CosineDistance(self.layer_weights), terms),
            minimiser,
            self.start,
            self.restarts,
        )
