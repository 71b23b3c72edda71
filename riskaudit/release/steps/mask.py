"""A random mask on the entries, drawn once and known to everybody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from typing_extensions import override

from riskaudit.release.arguments import Argument, optional_seed, share_below_one
from riskaudit.release.steps.base import Step, StepContext, VectorFunction, num_removed, register
from riskaudit.release.steps.closed_forms import Kept

if TYPE_CHECKING:
    from torch import Tensor


@register
@final
@dataclass(frozen=True)
class Mask(Step):
    """Set a random share ``ratio`` of entries to zero: the same entries for every sample, known to all."""

    ratio: float
    seed: int = 0
    name: ClassVar[str] = "mask"
    summary: ClassVar[str] = "set the share RATIO of entries, drawn once with SEED and known to the attacker, to 0"
    arguments: ClassVar[tuple[Argument, ...]] = (share_below_one("RATIO"), optional_seed("SEED"))
    keeps_noise: ClassVar[bool] = True
    before_mean: ClassVar[bool] = True

    @override
    def bind(self, context: StepContext) -> VectorFunction:
        mask = self._mask(context)
        return lambda released: released * mask

    @override
    def derivative(self, released: Tensor, context: StepContext) -> Kept:
        return Kept(self._mask(context))

    def _mask(self, context: StepContext) -> Tensor:
        """0 at the removed entries, 1 elsewhere, [P]; the same on every device."""
        import torch

        order = torch.randperm(context.num_entries, generator=torch.Generator().manual_seed(self.seed))
        mask = torch.ones(context.num_entries, dtype=context.dtype)
        mask[order[: num_removed(self.ratio, context.num_entries)]] = 0
        return mask.to(context.device)
