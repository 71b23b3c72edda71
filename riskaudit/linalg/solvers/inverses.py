"""Solving (H + shift) z = b with a symmetric positive semidefinite H: the solver interface.

A small residual alone doesn't make z accurate: the error is at most ||r|| / (l_n + shift). With
shift > 0 that bound is known beforehand and is what "converged" means here; with shift = 0 the
iteration's own estimate of the smallest eigenvalue takes its place, and nothing is certified.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from riskaudit.errors import SettingsError
from riskaudit.linalg.operators import LinearOperator
from riskaudit.linalg.solution import Solution, statuses


class InverseSolver(ABC):
    """Solves B systems at once."""

    @abstractmethod
    def solve(self, operator: LinearOperator, rhs: Tensor, shift: Tensor, largest: Tensor) -> Solution:
        """(H + shift)^-1 b per sample.

        Args:
            operator: H, [B, n, n].
            rhs: b, [B, n].
            shift: [B], float64, >= 0.
            largest: certified upper end of l_1, [B], float64, for methods that need a step size.

        Returns:
            value [B, n]; low and high bracket its 2-norm where shift > 0, else they are infinite ends.
        """


INVERSE_SOLVERS: dict[str, Callable[..., InverseSolver]] = {}


def register_inverse_solver(name: str) -> Callable[[type[InverseSolver]], type[InverseSolver]]:
    """Class decorator: make a solver known to ``inverse`` under ``name``."""

    def register(solver: type[InverseSolver]) -> type[InverseSolver]:
        if name in INVERSE_SOLVERS:
            raise SettingsError(f"the inverse solver {name!r} is registered twice")
        INVERSE_SOLVERS[name] = solver
        return solver

    return register


def relative_error_bound(residual_norm: Tensor, solution_norm: Tensor, smallest: Tensor) -> Tensor:
    """||z - z*|| / ||z|| <= ||r|| / (l_min ||z||), [B]; 0 where r = 0, infinite where l_min = 0 < ||r||."""
    scale = (smallest * solution_norm).to(residual_norm.dtype)
    bound = torch.where(scale > 0, residual_norm / scale.clamp_min(1e-300), torch.full_like(scale, float("inf")))
    return torch.where(residual_norm == 0, torch.zeros_like(bound), bound)


def finish(
    operator: LinearOperator,
    rhs: Tensor,
    shift: Tensor,
    value: Tensor,
    claimed: Tensor,
    tolerance: float,
    smallest: Tensor,
    matvecs: Tensor,
) -> Solution:
    """Recompute the true residual of ``value`` (one more product) and grade the solve by it.

    Args:
        operator: H.
        rhs: b, [B, n].
        shift: [B].
        value: z, [B, n].
        claimed: samples that the iteration took to be converged, [B].
        tolerance: bound on the relative error.
        smallest: [B] the smallest eigenvalue of H + shift that the iteration knows of or estimates.
        matvecs: [B] products that the iteration used.
    """
    remainder = rhs - operator.matvec(value) - shift[:, None].to(rhs.dtype) * value
    residual, norm = remainder.norm(dim=-1).double(), value.norm(dim=-1).double()
    # The recurrence's residual drifts from the true one by rounding: twice the tolerance allows for
    # that, and not for a wrong solution.
    converged = claimed & (relative_error_bound(residual, norm, smallest) <= 2 * tolerance)
    error = torch.where(shift > 0, residual / shift.clamp_min(1e-300), torch.full_like(residual, float("inf")))
    rhs_norm = rhs.norm(dim=-1).double()
    return Solution(
        value=value,
        low=(norm - error).clamp_min(0.0),
        high=norm + error,
        status=statuses(converged & torch.isfinite(norm)),
        residual=torch.where(rhs_norm > 0, residual / rhs_norm.clamp_min(1e-300), residual),
        matvecs=matvecs + 1,
    )
