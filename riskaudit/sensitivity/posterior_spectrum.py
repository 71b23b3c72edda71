"""The posterior under a correlated prior from all eigenvalues of K = L H L: exact.

With K = V diag(k) V^T and w_i = v_i^T C v_i the posterior covariance L (K / sigma^2 + I)^-1 L has the trace
sum_i w_i sigma^2 / (k_i + sigma^2), and the MAP attacker's variance is sum_i w_i sigma^2 k_i / (k_i + sigma^2)^2
(docs/theory.md, section 2, in the eigenbasis of K).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from riskaudit.linalg import Spectrum
from riskaudit.priors import BoundPrior


@final
@dataclass(frozen=True, eq=False)
class PosteriorSpectrum:
    """All of K's eigenvalues at B samples, float64.

    Attributes:
        values: k, ascending, rounding below zero cut off, [B, d].
        vectors: V, eigenvectors as columns, [B, d, d].
        weights: w_i = ||L v_i||^2, [B, d]; they add up to tr C.
        prior: at the same samples, float64.
    """

    values: Tensor
    vectors: Tensor
    weights: Tensor
    prior: BoundPrior

    @classmethod
    def of(cls, spectrum: Spectrum, prior: BoundPrior) -> PosteriorSpectrum:
        """From H's own spectrum, sample by sample; ``prior`` is float64."""
        values, vectors, weights = [], [], []
        for index, (own, basis) in enumerate(zip(spectrum.values, spectrum.vectors, strict=True)):
            # K = F^T F with F = diag(sqrt(l)) V_H^T L can't get eigenvalues far below zero by rounding.
            factor = _root_of_rows(prior, index, own.sqrt()[:, None] * basis.mT)
            found = torch.linalg.eigh(factor.mT @ factor)
            values.append(found.eigenvalues.clamp_min(0.0))
            vectors.append(found.eigenvectors)
            weights.append(_root_of_rows(prior, index, found.eigenvectors.mT).square().sum(-1))
        return cls(torch.stack(values), torch.stack(vectors), torch.stack(weights), prior)

    def solve(self, rhs: Tensor, shift: float) -> Tensor:
        """L (K + shift)^-1 rhs for rhs [B, d], float64."""
        coefficients = torch.einsum("bnk,bn->bk", self.vectors, rhs.double()) / (self.values + shift)
        return self.prior.root(torch.einsum("bnk,bk->bn", self.vectors, coefficients))

    def covariance_eigenvalues(self, index: int, variance: float) -> Tensor:
        """Eigenvalues of one sample's posterior covariance at noise of this variance, ascending [d]."""
        rows = _root_of_rows(self.prior, index, self.vectors[index].mT)
        # Divided first, so that no noise is too large or too small.
        left = 1 / (1 + self.values[index] / variance)
        factor = left.sqrt()[:, None] * rows
        eigenvalues: Tensor = torch.linalg.eigvalsh(factor.mT @ factor)
        return eigenvalues.clamp_min(0.0)


def _root_of_rows(prior: BoundPrior, index: int, rows: Tensor) -> Tensor:
    """L of one sample on the rows [m, d]."""
    return prior.select([index] * len(rows)).root(rows)
