"""N(mu, tau^2 I): every input coordinate on its own, with one mean and one standard deviation.

Images are far from white, so an attacker who knows their correlations does better than this prior says
(docs/theory.md, section 2). It is the default because it needs nothing but two numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.errors import SettingsError
from riskaudit.priors.base import BoundPrior, Prior
from riskaudit.results import PriorInfo


@final
@dataclass(frozen=True)
class IsotropicPrior(Prior):
    """Mean and standard deviation of one input coordinate, in data units."""

    mean: float
    std: float

    kind: ClassVar[str] = "isotropic"

    def __post_init__(self) -> None:
        if not _is_number(self.mean):
            raise SettingsError(f"expected a finite prior mean, found {self.mean}; set `prior_mean`")
        if not (_is_number(self.std) and self.std > 0):
            raise SettingsError(
                f"expected a number above 0 as prior standard deviation, found {self.std!r}; set `prior_std` "
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

    @override
    def bind(self, targets: Tensor, like: Tensor, lengths: Tensor | None = None) -> BoundPrior:
        return self._bound(like.shape[1], len(targets), like.dtype, like.device)

    def _bound(self, dimension: int, num_samples: int, dtype: torch.dtype, device: torch.device) -> BoundPrior:
        variance = torch.full((num_samples,), self.std * self.std, dtype=torch.float64, device=device)
        return BoundPrior(
            mean=torch.full((num_samples, dimension), self.mean, dtype=dtype, device=device),
            root=lambda vector: self.std * vector,
            inverse_root=lambda vector: vector / self.std,
            variance=variance,
            largest=variance,
            select=lambda indices: self._bound(dimension, len(indices), dtype, device),
            isotropic=True,
        )

    @override
    def info(self) -> PriorInfo:
        return PriorInfo(kind=self.kind, mean=self.mean, std=self.std)


def _is_number(value: object) -> bool:
    """Whether a setting is a finite real number; truth values, texts and tensors are none."""
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # of an integer beyond all floats
        return False
