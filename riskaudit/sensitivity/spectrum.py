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

from riskaudit.linalg import Spectrum, by_block
from riskaudit.priors import BoundPrior


@final
@dataclass(frozen=True, eq=False)
class PosteriorSpectrum:
    """All of K's eigenvalues at U uploads of n samples, float64.

    Attributes:
        spectrum: k and V.
        weights: w_i of every sample, [U, n, n d]; they add up to tr C_j.
        prior: at the same uploads, in its own units, float64.
    """

    spectrum: Spectrum
    weights: Tensor
    prior: BoundPrior

    @classmethod
    def of(cls, spectrum: Spectrum, prior: BoundPrior, num_blocks: int = 1) -> PosteriorSpectrum:
        """From H's own spectrum, upload by upload; that is K's where L = 1."""
        if prior.isotropic:
            if num_blocks == 1:
                return cls(spectrum, torch.ones_like(spectrum.values).unsqueeze(1), prior)
            return cls(spectrum, torch.stack([_by_block(each.mT, num_blocks) for each in spectrum.vectors]), prior)
        values, vectors, weights = [], [], []
        for index, (eigenvalues, basis) in enumerate(zip(spectrum.values, spectrum.vectors, strict=True)):
            # K = F^T F with F = diag(sqrt(l)) V_H^T L can't get eigenvalues far below zero by rounding.
            factor = prior.root_of_rows(index, eigenvalues.sqrt()[:, None] * basis.mT)
            eigen = torch.linalg.eigh(factor.mT @ factor)
            values.append(eigen.eigenvalues.clamp_min(0.0))
            vectors.append(eigen.eigenvectors)
            weights.append(_by_block(prior.root_of_rows(index, eigen.eigenvectors.mT), num_blocks))
        # Eigenvalues below rounding belong to directions that the prior all but rules out: no shift is lost in them.
        whitened = Spectrum(torch.stack(values), torch.stack(vectors), spectrum.matvecs, 0.0)
        return cls(whitened, torch.stack(weights), prior)

    def shares_by_block(self, eps: Tensor, num_blocks: int) -> Tensor:
        """Revealed fractions of equal parts of the coordinates of uploads of one sample, [U, num_blocks].

        Args:
            eps: the shift, [U].
            num_blocks: parts, one after the other.
        """
        shares = []
        for upload, shift in enumerate(eps.tolist()):
            rows = self.spectrum.vectors[upload].mT
            rows = rows if self.prior.isotropic else self.prior.root_of_rows(upload, rows)
            weights, values = _by_block(rows, num_blocks), self.spectrum.values[upload]
            told = torch.where(values > 0, 1 / (1 + shift / values.clamp_min(1e-300)), 0.0)
            shares.append((weights @ told / weights.sum(1)).clamp(0.0, 1.0))
        return torch.stack(shares)

    def covariance_eigenvalues(self, index: int, eps: float) -> Tensor:
        """Eigenvalues of one sample's block of L eps (K + eps)^-1 L, [d]; ``index`` counts samples."""
        num_blocks = self.weights.shape[1]
        upload, block = divmod(index, num_blocks)
        # Divided first, so that no noise is too large or too small.
        left = 1 / (1 + self.spectrum.values[upload] / eps)
        if self.prior.isotropic and num_blocks == 1:
            return left
        rows = self.spectrum.vectors[upload].mT
        rows = rows if self.prior.isotropic else self.prior.root_of_rows(upload, rows)
        factor = left.sqrt()[:, None] * by_block(rows, num_blocks)[:, block]
        eigenvalues: Tensor = torch.linalg.eigvalsh(factor.mT @ factor)
        return eigenvalues.clamp_min(0.0)


def _by_block(rows: Tensor, num_blocks: int) -> Tensor:
    """Squared norms of the blocks of L v_i, given as rows [n d, n d]: [n, n d]."""
    return by_block(rows, num_blocks).square().sum(-1).mT
