"""``gradinversion``: squared distance, image priors, batch-norm statistics, and a group of guesses that agree.

Yin et al., "See through Gradients", CVPR 2021, Eq. 2 to 11 with the weights of section 4.1: total variation 1e-4,
squared norm 1e-6, batch-norm statistics 0.1, group consistency 0.01; 20000 steps of Adam at 0.1, warm-up 50 steps,
cosine decay. Labels of an upload are known or read off it (see `labels`); guesses of a group are registered by shifts
in the place of a flow (see `consensus`). Left out: the noise that they add to pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from typing_extensions import override

from riskaudit.attacks.base import Attack, Observation, Reconstruction, register
from riskaudit.attacks.matching import SquaredDistance
from riskaudit.attacks.optimise.batch_norms import BatchNormStatistics
from riskaudit.attacks.optimise.consensus import GroupConsistency
from riskaudit.attacks.optimise.descent import Descent
from riskaudit.attacks.optimise.objectives import Objective, Term
from riskaudit.attacks.optimise.regularisers import SquaredNorm, TotalVariation
from riskaudit.attacks.optimise.search import reconstruct
from riskaudit.attacks.optimise.starts import Start


@register
@final
@dataclass(frozen=True)
class GradInversion(Attack):
    """Minimise weight ||r(z) - obs||^2 + image priors + batch-norm distance + group consistency.

    Attributes:
        steps: of Adam at most.
        restarts: guesses in the group of one upload.
        rate: step size in the prior's standard deviations.
        matching_weight: weight of the squared distance.
        total_variation: weight.
        squared_norm: weight.
        batch_norm: weight of the distance from the batch-norm statistics that are known.
        consistency: weight of the displacement from the group's registered average.
        start: kind of the first guesses.
    """

    name: ClassVar[str] = "gradinversion"
    title: ClassVar[str] = "GradInversion"
    source: ClassVar[str] = "Yin et al., CVPR 2021"
    matching: ClassVar[Literal["l2", "cosine"] | None] = "l2"
    summary: ClassVar[str] = "Squared distance with image priors, batch-norm statistics and a group of guesses."
    grid: ClassVar[tuple[Mapping[str, object], ...]] = (
        {},
        {"matching_weight": 1.0},
        {"matching_weight": 1e-1, "batch_norm": 1e-2},
        {"matching_weight": 1.0, "total_variation": 1e-2},
    )

    steps: int = 20000
    restarts: int = 4
    rate: float = 0.1
    matching_weight: float = 1e-3
    total_variation: float = 1e-4
    squared_norm: float = 1e-6
    batch_norm: float = 0.1
    consistency: float = 0.01
    start: Start = "gaussian"

    @property
    @override
    def first(self) -> Attack:
        """The guesses of one sample agree with each other, so that none is there without the others."""
        return self

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        minimiser = Descent(self.steps, self.rate, schedule="cosine", warm_up=50, box=observation.input_range)
        return reconstruct(
            observation,
            generator,
            lambda labelled: Objective.of(
                labelled, self.restarts, SquaredDistance(), self._terms(), matching_weight=self.matching_weight
            ),
            minimiser,
            self.start,
            self.restarts,
        )

    def _terms(self) -> tuple[Term, ...]:
        terms = [
            Term(TotalVariation(), self.total_variation),
            Term(SquaredNorm(), self.squared_norm),
            Term(BatchNormStatistics(), self.batch_norm),
        ]
        if self.restarts > 1:
            terms.append(Term(GroupConsistency(), self.consistency))
        return tuple(term for term in terms if term.weight > 0)
