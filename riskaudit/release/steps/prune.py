"""Magnitude pruning: the smallest entries are set to zero, as gradient compression does (Lin et al., ICLR 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from typing_extensions import override

from riskaudit.release.arguments import Argument, share_below_one
from riskaudit.release.steps.base import Step, StepContext, VectorFunction, num_removed, register
from riskaudit.release.steps.closed_forms import Kept

if TYPE_CHECKING:
    from torch import Tensor


@register
@final
@dataclass(frozen=True)
class Prune(Step):
    """Set the ``ratio`` share of entries that are smallest in magnitude to zero, per sample.

    Exactly P - round(ratio P) entries are kept; which ones is constant around a sample.
    """

    ratio: float
    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "set the share RATIO of entries that are smallest in magnitude to 0"
    arguments: ClassVar[tuple[Argument, ...]] = (share_below_one("RATIO"),)
    chooses: ClassVar[bool] = True

    @override
    def bind(self, context: StepContext) -> VectorFunction:
        return lambda released: released * self._mask(released)

    @override
    def derivative(self, released: Tensor, context: StepContext) -> Kept:
        import torch

        return Kept(torch.stack([self._mask(row) for row in released]))

    def _mask(self, released: Tensor) -> Tensor:
        """1 at the largest entries of a vector [P], 0 elsewhere."""
        import torch

        count = len(released) - num_removed(self.ratio, len(released))
        largest = torch.topk(released.abs(), count, sorted=False).indices
        return torch.zeros_like(released).scatter(0, largest, 1.0)
