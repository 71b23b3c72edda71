"""Clipping to a norm, as in differentially private training (Abadi et al., CCS 2016, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from typing_extensions import override

from riskaudit.release.arguments import Argument, positive_number
from riskaudit.release.steps.base import Step, StepContext, VectorFunction, register
from riskaudit.release.steps.closed_forms import Projected

if TYPE_CHECKING:
    from torch import Tensor


@register
@final
@dataclass(frozen=True)
class Clip(Step):
    """Scale one sample's vector down to 2-norm ``bound`` where it is longer.

    Beyond the bound the Jacobian is (C / ||r||)(I - rhat rhat^T) J (docs/theory.md, section 2).
    """

    bound: float
    name: ClassVar[str] = "clip"
    summary: ClassVar[str] = "scale down to 2-norm C: a sample's vector, after mean or local the upload"
    arguments: ClassVar[tuple[Argument, ...]] = (positive_number("C"),)
    chooses: ClassVar[bool] = True
    before_mean: ClassVar[bool] = True

    @override
    def bind(self, context: StepContext) -> VectorFunction:
        return lambda released: released * self._scale(released.square().sum())[1]

    @override
    def derivative(self, released: Tensor, context: StepContext) -> Projected:
        squared = released.square().sum(-1)
        norm, scale = self._scale(squared)
        longer = squared > self.bound * self.bound
        return Projected(scale, released * (longer / norm)[:, None])

    def _scale(self, squared: Tensor) -> tuple[Tensor, Tensor]:
        """||r|| where it is over the bound, else 1, and the factor of r; from ||r||^2."""
        # Not bound**2: floats raise OverflowError there instead of giving infinity.
        longer = squared > self.bound * self.bound
        # The choice under the root keeps the derivative of the untaken branch finite at r = 0.
        norm = squared.where(longer, 1.0).sqrt()
        return norm, (self.bound / norm).where(longer, 1.0)
