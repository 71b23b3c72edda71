"""Least squares by gradient descent: minimise ||(H + shift) z - b||^2 / 2 over z.

The inverse of the I2F paper's own experiments (Zhang et al., NeurIPS 2023, section 4). It squares the
condition number, and with a fixed learning rate it diverges once l_1 grows: the default rate here is
1 / (certified l_1 + shift)^2, which always converges, however slowly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from riskaudit.linalg.active import Deadline
from riskaudit.linalg.operators import LinearOperator
from riskaudit.linalg.solution import Solution
from riskaudit.linalg.solvers.inverses import InverseSolver, register_inverse_solver
from riskaudit.linalg.solvers.richardson import iterate


@register_inverse_solver("least-squares")
@final
@dataclass(frozen=True)
class LeastSquares(InverseSolver):
    """Solve with H by gradient descent on the squared residual: the I2F paper's own.

    Attributes:
        tolerance: relative error of the solution at which a sample counts as converged.
        max_matvecs: products per sample at most (two a step), besides the one that checks the residual.
        learning_rate: or None for 1 / (certified l_1 + shift)^2.
        deadline: asked before each step; True ends the iteration with what is there.
    """

    tolerance: float = 1e-7
    max_matvecs: int = 1000
    learning_rate: float | None = None
    deadline: Deadline | None = None

    def solve(self, operator: LinearOperator, rhs: Tensor, shift: Tensor, largest: Tensor) -> Solution:
        """See `InverseSolver.solve`."""
        rate = (
            (largest + shift) ** -2
            if self.learning_rate is None
            else largest.new_full(largest.shape, self.learning_rate)
        )
        return iterate(
            operator,
            rhs,
            shift,
            step=rate,
            order=2,
            tolerance=self.tolerance,
            max_matvecs=self.max_matvecs,
            deadline=self.deadline,
        )
