"""Dropout on an upload: random entries are set to zero, others for every upload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from typing_extensions import override

from riskaudit.release.arguments import Argument, share_below_one
from riskaudit.release.steps.base import Step, StepContext, VectorFunction, register

if TYPE_CHECKING:
    from torch import Tensor


@register
@final
@dataclass(frozen=True)
class Dropout(Step):
    """Set every entry of an upload to zero with probability ``probability``, drawn anew for every upload.

    What is left isn't scaled. The server sees which entries are zero.
    """

    probability: float
    name: ClassVar[str] = "dropout"
    summary: ClassVar[str] = "set every entry of an upload to 0 with probability P, drawn for each upload"
    arguments: ClassVar[tuple[Argument, ...]] = (share_below_one("P"),)
    redrawn: ClassVar[bool] = True

    @override
    def bind(self, context: StepContext) -> VectorFunction:
        kept = self._kept(context)
        return lambda released: released * kept

    def _kept(self, context: StepContext) -> Tensor:
        """1 at the entries that are kept, 0 elsewhere, [P]; the same on every device."""
        import numpy as np
        import torch

        # Not torch's generators, which a vmap around the release would refuse.
        draws = np.random.default_rng(context.upload).random(context.num_entries)
        return torch.from_numpy(draws >= self.probability).to(context.dtype).to(context.device)
