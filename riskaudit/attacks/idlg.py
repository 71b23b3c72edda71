"""``idlg``: Improved Deep Leakage from Gradients: the label first, read off the last layer; then as ``dlg``.

Zhao, Mopuri and Bilen, 2020, Algorithm 1. The label is recovered even where it is known to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from typing_extensions import override

from riskaudit.attacks.base import Attack, Observation, Reconstruction, register
from riskaudit.attacks.dlg import DeepLeakage, Optimiser
from riskaudit.attacks.optimise.starts import Start


@register
@final
@dataclass(frozen=True)
class ImprovedDeepLeakage(Attack):
    """Recover the label, then minimise ||r(z) - obs||^2. Attributes as in `DeepLeakage`."""

    name: ClassVar[str] = "idlg"
    title: ClassVar[str] = "Improved Deep Leakage from Gradients"
    source: ClassVar[str] = "Zhao et al., 2020"
    matching: ClassVar[Literal["l2", "cosine"] | None] = "l2"
    summary: ClassVar[str] = "The label from the last layer's gradient, then DLG."
    grid: ClassVar[tuple[Mapping[str, object], ...]] = DeepLeakage.grid

    steps: int = DeepLeakage.steps
    restarts: int = DeepLeakage.restarts
    optimiser: Optimiser = DeepLeakage.optimiser
    rate: float = DeepLeakage.rate
    start: Start = DeepLeakage.start

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        leakage = DeepLeakage(self.steps, self.restarts, self.optimiser, self.rate, self.start)
        return leakage.run(replace(observation, targets=None), generator)
