"""N(mu, tau^2 I): every input coordinate on its own, with one mean and one standard deviation.

Images are far from white, so an attacker who knows their correlations does better than this prior says
(THEORY, posterior error). It is the default because it needs nothing but two numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from riskaudit.errors import SettingsError


@dataclass(frozen=True)
class IsotropicPrior:
    """Mean and standard deviation of one input coordinate, in data units."""

    mean: float
    std: float

    kind = "isotropic"

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise SettingsError(f"expected a finite prior mean, found {self.mean}; set --prior-mean")
        if not (math.isfinite(self.std) and self.std > 0):
            raise SettingsError(
                f"expected a prior standard deviation above 0, found {self.std:g}; set --prior-std "
                "(data whose coordinates are all equal can't provide one)"
            )

    @classmethod
    def fit(cls, inputs: Tensor, mean: float | None = None, std: float | None = None) -> IsotropicPrior:
        """Mean and std over *all* coordinates of the samples [N, *S], where not given.

        Two numbers for the whole data, so that even a single sample can't pull the prior onto itself.

        Raises:
            SettingsError: the std is zero or a given value is out of range.
        """
        return cls(
            float(inputs.mean()) if mean is None else mean,
            float(inputs.std(correction=0)) if std is None else std,
        )

    def displacement(self, inputs: Tensor) -> Tensor:
        """x - mu, [B, d], for inputs [B, *S]."""
        return inputs.flatten(1) - self.mean
