"""Lanczos iteration with full reorthogonalisation, for all samples of a batch at once.

After k products, H Q = Q T + beta_k q_{k+1} e_k^T with orthonormal Q [n, k] and tridiagonal T.
Eigenvalues of T (Ritz values) lie between l_n and l_1; the residual of a Ritz pair is |beta_k z_k|.
T is kept in float64 whatever the operator's dtype. Not meant for more than a few hundred products:
the basis is stored and every new vector is orthogonalised against all of it, twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from riskaudit.linalg.eigenvalues import (
    EigenvalueSolver,
    certified_upper_end,
    lanczos_shortfall,
    register_eigenvalue_solver,
)
from riskaudit.linalg.operators import LinearOperator
from riskaudit.linalg.solution import Solution, statuses


@dataclass(frozen=True)
class RitzPairs:
    """Ritz values ascending [B, k], their vectors in the basis [B, k, k], and residuals [B, k]."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor


class LanczosProcess:
    """A Krylov space that grows one product at a time and can be read at any point."""

    def __init__(self, operator: LinearOperator, start: Tensor) -> None:
        self.operator = operator
        norm = start.norm(dim=-1, keepdim=True)
        self.basis = (start / norm).unsqueeze(1)  # [B, k + 1, n]; the last vector is still unused
        self.diagonal = torch.empty(len(start), 0, dtype=torch.float64, device=start.device)
        self.off_diagonal = torch.empty_like(self.diagonal)
        # Products until the Krylov space became invariant; T then holds exact eigenvalues.
        self.exhausted = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        self.num_products = torch.zeros(len(start), dtype=torch.long, device=start.device)

    @property
    def steps(self) -> int:
        """Products made so far, k."""
        return self.diagonal.shape[1]

    def advance(self) -> None:
        """One more product and basis vector per sample."""
        current = self.basis[:, -1]
        product = self.operator.matvec(current)
        alpha = (product * current).sum(-1).double()
        scale = product.norm(dim=-1)
        remainder = product
        for _ in range(2):
            coefficients = torch.einsum("bkn,bn->bk", self.basis, remainder)
            remainder = remainder - torch.einsum("bk,bkn->bn", coefficients, self.basis)
        beta = remainder.norm(dim=-1)
        self.num_products += (~self.exhausted).long()
        if self.steps:
            # A padded step must not add an eigenvalue of its own: repeat the first Rayleigh quotient,
            # which lies inside the spectrum.
            alpha = torch.where(self.exhausted, self.diagonal[:, 0], alpha)
        rounding = torch.finfo(product.dtype).eps * self.operator.shape[1] ** 0.5
        whole_space = self.steps + 1 >= self.operator.shape[1]
        self.exhausted = self.exhausted | (beta <= 10 * rounding * scale) | whole_space
        beta = torch.where(self.exhausted, torch.zeros_like(beta), beta)
        following = torch.where(
            self.exhausted[:, None], torch.zeros_like(remainder), remainder / beta.clamp_min(1e-300)[:, None]
        )
        self.basis = torch.cat([self.basis, following.unsqueeze(1)], dim=1)
        self.diagonal = torch.cat([self.diagonal, alpha[:, None]], dim=1)
        self.off_diagonal = torch.cat([self.off_diagonal, beta.double()[:, None]], dim=1)

    def projected(self) -> Tensor:
        """T = Q^T H Q, [B, k, k], float64."""
        inner = self.off_diagonal[:, :-1]
        return torch.diag_embed(self.diagonal) + torch.diag_embed(inner, offset=1) + torch.diag_embed(inner, offset=-1)

    def ritz(self) -> RitzPairs:
        """Ritz values and residuals of H in the present space."""
        values, vectors = torch.linalg.eigh(self.projected())
        return RitzPairs(values, vectors, (self.off_diagonal[:, -1:] * vectors[:, -1]).abs())

    def ritz_after_downdate(self, vector: Tensor) -> RitzPairs:
        """Ritz pairs of H - v v^T in the same space, for v [B, n]: no further product is needed.

        With v = Q c + w, the residual of (theta, Q z) is beta_k z_k q_{k+1} - (c . z) w', where w' is
        v's part outside the first k basis vectors (q_{k+1} is among it).
        """
        space, following = self.basis[:, :-1], self.basis[:, -1]
        inside = torch.einsum("bkn,bn->bk", space, vector)
        outside = (vector - torch.einsum("bk,bkn->bn", inside, space)).double()
        inside = inside.double()
        # A padded step repeats q_1's Rayleigh quotient, which taking v v^T away lowers likewise.
        padded = torch.arange(self.steps, device=inside.device) >= self.num_products[:, None]
        lowered = torch.where(padded, inside[:, :1] ** 2, torch.zeros_like(inside))
        projected = self.projected() - inside[:, :, None] * inside[:, None, :] - torch.diag_embed(lowered)
        values, vectors = torch.linalg.eigh(projected)
        along = self.off_diagonal[:, -1:] * vectors[:, -1]  # [B, k]
        overlap = torch.einsum("bk,bkj->bj", inside, vectors)
        cross = (outside * following.double()).sum(-1, keepdim=True)
        squared = along**2 - 2 * along * overlap * cross + overlap**2 * outside.square().sum(-1, keepdim=True)
        residuals = squared.clamp_min(0.0).sqrt()
        # Nothing is known of a padded step's own vector.
        weight = torch.einsum("bk,bkj->bj", padded.double(), vectors.square())
        return RitzPairs(
            values, vectors, torch.where(weight > 0.5, torch.full_like(residuals, float("inf")), residuals)
        )

    def shortfall(self, failure: float) -> Tensor:
        """e with l_1 <= theta / (1 - e), [B], float64; 0 where the space is invariant."""
        certified = [lanczos_shortfall(int(k), self.operator.shape[1], failure) for k in self.num_products.tolist()]
        shortfall = torch.tensor(certified, dtype=torch.float64, device=self.diagonal.device)
        return torch.where(self.exhausted, torch.zeros_like(shortfall), shortfall)


def largest_error(pairs: RitzPairs) -> Tensor:
    """Estimated distance of the largest Ritz value below the eigenvalue that it approaches, [B].

    The smaller of the residual and residual^2 / gap, the gap being to the second Ritz value (Parlett,
    The Symmetric Eigenvalue Problem, section 11.7).
    """
    residual = pairs.residuals[:, -1]
    if pairs.values.shape[1] < 2:
        return residual
    gap = pairs.values[:, -1] - pairs.values[:, -2] - residual
    return torch.where(gap > 0, torch.minimum(residual, residual**2 / gap.clamp_min(1e-300)), residual)


@register_eigenvalue_solver("lanczos")
@final
@dataclass(frozen=True)
class Lanczos(EigenvalueSolver):
    """Largest eigenvalue by Lanczos iteration: fewest products.

    Attributes:
        tolerance: relative error of l_1 at which a sample counts as converged.
        max_matvecs: products per sample at most.
        failure: probability, per sample, that ``high`` lies below l_1. Divide the whole audit's
            probability by the number of its samples.
    """

    tolerance: float = 1e-6
    max_matvecs: int = 100
    failure: float = 1e-4

    def solve(self, operator: LinearOperator, start: Tensor) -> Solution:
        """See `EigenvalueSolver.solve`."""
        return self.read(self.run(operator, start))

    def run(self, operator: LinearOperator, start: Tensor) -> LanczosProcess:
        """Iterate until every sample has converged or the products are used up."""
        process = LanczosProcess(operator, start)
        while process.steps < self.max_matvecs:
            process.advance()
            if bool(self.converged(process, process.ritz()).all()):
                break
        return process

    def converged(self, process: LanczosProcess, pairs: RitzPairs) -> Tensor:
        """Which samples' largest Ritz value has converged, [B]."""
        return process.exhausted | (largest_error(pairs) <= self.tolerance * pairs.values[:, -1].abs())

    def read(self, process: LanczosProcess) -> Solution:
        """l_1 from a process that `run` made."""
        pairs = process.ritz()
        value = pairs.values[:, -1].clamp_min(0.0)
        relative = pairs.residuals[:, -1] / value.clamp_min(1e-300)
        return Solution(
            value=value,
            low=value,
            high=certified_upper_end(value, process.shortfall(self.failure)),
            status=statuses(self.converged(process, pairs)),
            residual=torch.where(value > 0, relative, torch.zeros_like(relative)),
            matvecs=process.num_products.clone(),
        )
