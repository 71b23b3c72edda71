"""``dlg``: Deep Leakage from Gradients: squared gradient distance, L-BFGS.

Zhu, Liu and Han, NeurIPS 2019, Algorithm 1. Their joint optimisation of a soft label is replaced by known labels,
or by recovered ones, which is at least as strong. Their L-BFGS has no line search; this one has (see `lbfgs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from typing_extensions import override

from riskaudit.attacks.base import Attack, Observation, Reconstruction, register
from riskaudit.attacks.matching import SquaredDistance
from riskaudit.attacks.optimise.descent import Descent
from riskaudit.attacks.optimise.lbfgs import LimitedMemoryBFGS
from riskaudit.attacks.optimise.minimisers import Minimiser
from riskaudit.attacks.optimise.objectives import Objective
from riskaudit.attacks.optimise.search import reconstruct
from riskaudit.attacks.optimise.starts import Start

Optimiser = Literal["lbfgs", "adam"]


@register
@final
@dataclass(frozen=True)
class DeepLeakage(Attack):
    """Minimise ||r(z) - obs||^2.

    Attributes:
        steps: of the optimiser at most.
        restarts: random starts per sample.
        optimiser: L-BFGS, or Adam.
        rate: first trial of L-BFGS's line search; for Adam the step size in the prior's standard deviations.
        start: kind of the first guesses.
    """

    name: ClassVar[str] = "dlg"
    title: ClassVar[str] = "Deep Leakage from Gradients"
    source: ClassVar[str] = "Zhu et al., NeurIPS 2019"
    matching: ClassVar[Literal["l2", "cosine"] | None] = "l2"
    summary: ClassVar[str] = "Squared distance of gradients by L-BFGS; no prior."
    grid: ClassVar[tuple[Mapping[str, object], ...]] = (
        {},
        {"start": "mean"},
        {"optimiser": "adam", "rate": 0.1},
    )

    steps: int = 300
    restarts: int = 1
    optimiser: Optimiser = "lbfgs"
    rate: float = 1.0
    start: Start = "gaussian"

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        minimiser: Minimiser = Descent(self.steps, self.rate)
        if self.optimiser == "lbfgs":
            minimiser = LimitedMemoryBFGS(self.steps, self.rate)
        return reconstruct(
            observation,
            generator,
            lambda labelled: Objective.of(labelled, self.restarts, SquaredDistance()),
            minimiser,
            self.start,
            self.restarts,
        )
