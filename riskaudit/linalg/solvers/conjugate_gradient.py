"""Conjugate gradient on (H + shift) z = b, all samples at once, each stopping on its own.

Hestenes and Stiefel 1952. The coefficients of the iteration form the Lanczos tridiagonal matrix of
H + shift (Golub and Van Loan, Matrix Computations, section 11.3), whose smallest eigenvalue stands in
for the unknown l_n + shift where shift = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg.active import ActiveOperator, Deadline
from riskaudit.linalg.operators import LinearOperator
from riskaudit.linalg.solution import Solution
from riskaudit.linalg.solvers.inverses import InverseSolver, finish, register_inverse_solver, relative_error_bound


@register_inverse_solver("cg")
@final
@dataclass(frozen=True)
class ConjugateGradient(InverseSolver):
    """Solve with H by conjugate gradient: fewest products.

    Attributes:
        tolerance: relative error of the solution at which a sample counts as converged.
        max_matvecs: products per sample at most, besides the one that checks the residual.
        deadline: asked before each product; True ends the iteration with what is there.
    """

    tolerance: float = 1e-7
    max_matvecs: int = 1000
    deadline: Deadline | None = None

    @override
    def solve(self, operator: LinearOperator, rhs: Tensor, shift: Tensor, largest: Tensor) -> Solution:
        value, remainder, direction = torch.zeros_like(rhs), rhs.clone(), rhs.clone()
        squared = remainder.square().sum(-1)
        rhs_norm = squared.sqrt().double()
        steps: list[Tensor] = []
        ratios: list[Tensor] = []
        active = squared > 0
        claimed = ~active
        smallest = shift.clone()
        matvecs = torch.zeros(len(rhs), dtype=torch.long, device=rhs.device)
        working = ActiveOperator(operator)
        while len(steps) < self.max_matvecs and bool(active.any()):
            if self.deadline is not None and self.deadline():
                break
            product = working.matvec(direction, active) + shift[:, None].to(rhs.dtype) * direction
            curvature = (direction * product).sum(-1)
            matvecs += active.long()
            # Zero or negative curvature: the direction lies in the null space up to rounding.
            active = active & (curvature > 0) & torch.isfinite(curvature)
            step = torch.where(active, squared / torch.where(active, curvature, torch.ones_like(curvature)), 0.0)
            value = value + step[:, None] * direction
            remainder = remainder - step[:, None] * product
            following = remainder.square().sum(-1)
            ratio = torch.where(active, following / torch.where(active, squared, torch.ones_like(squared)), 0.0)
            steps.append(step)
            ratios.append(ratio)
            reached, smallest = self._reached(active, following.sqrt(), value, shift, smallest, rhs_norm, steps, ratios)
            claimed = claimed | reached
            active = active & ~reached & (following > 0)
            claimed = claimed | (following == 0)
            direction = torch.where(active[:, None], remainder + ratio[:, None] * direction, direction)
            squared = torch.where(active, following, squared)
        return finish(operator, rhs, shift, value, claimed, self.tolerance, smallest, matvecs)

    def _reached(
        self,
        active: Tensor,
        residual: Tensor,
        value: Tensor,
        shift: Tensor,
        smallest: Tensor,
        rhs_norm: Tensor,
        steps: list[Tensor],
        ratios: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Active samples whose error bound is within the tolerance, and the eigenvalue behind it, both [B]."""
        residual, norm = residual.double(), value.norm(dim=-1).double()
        smallest = smallest.clone()
        # With shift = 0 the smallest eigenvalue must be estimated. Since l_n ||z|| <= ||b||, no bound can be
        # within the tolerance before the relative residual is.
        near = active & (shift == 0) & (residual <= self.tolerance * rhs_norm)
        for index in torch.nonzero(near).flatten().tolist():
            smallest[index] = _smallest_ritz_value(
                np.array([float(step[index]) for step in steps]), np.array([float(ratio[index]) for ratio in ratios])
            )
        return active & (relative_error_bound(residual, norm, smallest) <= self.tolerance), smallest


def _smallest_ritz_value(steps: np.ndarray, ratios: np.ndarray) -> float:
    """Smallest eigenvalue of the Lanczos matrix of a conjugate-gradient run of k steps.

    Diagonal 1/a_j + b_{j-1}/a_{j-1}, off-diagonal sqrt(b_j)/a_j, for steps a and ratios b.
    """
    diagonal = 1 / steps
    diagonal[1:] += ratios[:-1] / steps[:-1]
    off_diagonal = np.sqrt(ratios[:-1]) / steps[:-1]
    smallest = eigvalsh_tridiagonal(diagonal, off_diagonal, select="i", select_range=(0, 0))
    return max(float(smallest[0]), 0.0)
