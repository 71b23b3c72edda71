"""The posterior from all eigenvalues of K = L H L: exact.

With K = V diag(k) V^T, w_i = ||L v_i||^2 and the prior's covariance tau^2 C, C = L L, the posterior covariance
tau^2 L eps (K + eps)^-1 L has the trace tau^2 sum_i w_i eps / (k_i + eps), and the MAP attacker's variance is
sigma^2 sum_i w_i k_i / (k_i + eps)^2 (docs/theory.md, section 2, in the eigenbasis of K). Of a block of input
coordinates the same holds with w_i = ||(L v_i)[block]||^2.
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
        spectrum: k and V.
        weights: w_i, [B, d]; they add up to tr C = d.
        prior: at the same samples, in its own units, float64.
    """

    spectrum: Spectrum
    weights: Tensor
    prior: BoundPrior

    @classmethod
    def of(cls, spectrum: Spectrum, prior: BoundPrior) -> PosteriorSpectrum:
        """From H's own spectrum, sample by sample; that is K's where L = 1."""
        if prior.isotropic:
            return cls(spectrum, torch.ones_like(spectrum.values), prior)
        values, vectors, weights = [], [], []
        for index, (eigenvalues, basis) in enumerate(zip(spectrum.values, spectrum.vectors, strict=True)):
            # K = F^T F with F = diag(sqrt(l)) V_H^T L can't get eigenvalues far below zero by rounding.
            factor = _root_of_rows(prior, index, eigenvalues.sqrt()[:, None] * basis.mT)
            eigen = torch.linalg.eigh(factor.mT @ factor)
            values.append(eigen.eigenvalues.clamp_min(0.0))
            vectors.append(eigen.eigenvectors)
            weights.append(_root_of_rows(prior, index, eigen.eigenvectors.mT).square().sum(-1))
        # Eigenvalues below rounding belong to directions that the prior all but rules out: no shift is lost in them.
        whitened = Spectrum(torch.stack(values), torch.stack(vectors), spectrum.matvecs, 0.0)
        return cls(whitened, torch.stack(weights), prior)

    def covariance_eigenvalues(self, index: int, eps: float) -> Tensor:
        """Eigenvalues of one sample's L eps (K + eps)^-1 L, [d]."""
        # Divided first, so that no noise is too large or too small.
        left = 1 / (1 + self.spectrum.values[index] / eps)
        if self.prior.isotropic:
            return left
        rows = _root_of_rows(self.prior, index, self.spectrum.vectors[index].mT)
        factor = left.sqrt()[:, None] * rows
        eigenvalues: Tensor = torch.linalg.eigvalsh(factor.mT @ factor)
        return eigenvalues.clamp_min(0.0)


def _root_of_rows(prior: BoundPrior, index: int, rows: Tensor) -> Tensor:
    """L of one sample on the rows [m, d]."""
    return prior.select([index] * len(rows)).root(rows)
