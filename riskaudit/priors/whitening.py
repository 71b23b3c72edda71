"""K = L H L: the sensitivity of a release in the coordinates in which the prior is white.

With x = mu + L w and w ~ N(0, I) the Jacobian in w is J L, so K = (J L)^T J L, and everything that holds for
a white prior holds for K (docs/theory.md, section 2).
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg import LinearOperator
from riskaudit.priors.base import BoundPrior


@final
class WhitenedOperator(LinearOperator):
    """L H L for a symmetric operator H [B, d, d] and the prior's symmetric root L at the same samples."""

    def __init__(self, operator: LinearOperator, prior: BoundPrior) -> None:
        super().__init__(operator.num_samples, operator.shape, operator.dtype, operator.device)
        self.operator = operator
        self.prior = prior

    @property
    @override
    def psd(self) -> bool:
        return self.operator.psd

    @override
    def _matmat(self, columns: Tensor) -> Tensor:
        return self._root(self.operator.matmat(self._root(columns)))

    def _root(self, columns: Tensor) -> Tensor:
        return torch.stack([self.prior.root(column) for column in columns.unbind(-1)], dim=-1)

    @override
    def select(self, indices: list[int]) -> WhitenedOperator:
        return WhitenedOperator(self.operator.select(indices), self.prior.select(indices))


def in_white_coordinates(operator: LinearOperator, prior: BoundPrior) -> LinearOperator:
    """L H L for a prior in its own units (`BoundPrior.in_its_units`): H itself where that is isotropic, as L = 1."""
    return operator if prior.isotropic else WhitenedOperator(operator, prior)
