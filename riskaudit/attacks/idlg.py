"""``idlg``: Improved Deep Leakage from Gradients: the label first, read off the last layer; then as ``dlg``.

Zhao, Mopuri and Bilen, 2020, Algorithm 1. The label is recovered even where it is known to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch

from riskaudit.attacks.base import Attack, Observation, Reconstruction, register
from riskaudit.attacks.dlg import least_squares_minimiser
from riskaudit.attacks.matching import SquaredDistance
from riskaudit.attacks.objectives import Objective
from riskaudit.attacks.search import reconstruct
from riskaudit.attacks.starts import Start


@register
@final
@dataclass(frozen=True)
class ImprovedDeepLeakage(Attack):
    """Recover the label, then minimise ||r(z) - obs||^2. Attributes as in `DeepLeakage`."""

    name: ClassVar[str] = "idlg"
    title: ClassVar[str] = "Improved Deep Leakage from Gradients"
    source: ClassVar[str] = "Zhao et al., 2020"
    summary: ClassVar[str] = "The label from the last layer's gradient, then DLG."
    grid: ClassVar[tuple[Mapping[str, object], ...]] = (
        {},
        {"start": "mean"},
        {"optimiser": "adam", "rate": 0.1},
    )

    steps: int = 300
    restarts: int = 1
    optimiser: Literal["lbfgs", "adam"] = "lbfgs"
    rate: float = 1.0
    start: Start = "gaussian"

    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        """See `Attack.run`."""
        return reconstruct(
            replace(observation, targets=None),
            generator,
            lambda known: Objective.of(known, self.restarts, SquaredDistance()),
            least_squares_minimiser(self.optimiser, self.steps, self.rate),
            self.start,
            self.restarts,
        )
