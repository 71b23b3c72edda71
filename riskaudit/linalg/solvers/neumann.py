"""Neumann series: (H + shift)^-1 b = alpha sum_k (I - alpha (H + shift))^k b, 0 < alpha < 2 / (l_1 + shift).

Zhang et al., NeurIPS 2023, section 4. Summed as z <- z + alpha (b - (H + shift) z), which also gives
the residual at no further cost. The step defaults to 1 / (certified l_1 + shift): always convergent.
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


@register_inverse_solver("neumann")
@final
@dataclass(frozen=True)
class Neumann(InverseSolver):
    """Solve with H by the Neumann series.

    Attributes:
        tolerance: relative error of the solution at which a sample counts as converged.
        max_matvecs: products (terms) per sample at most, besides the one that checks the residual.
        step: alpha, or None for 1 / (certified l_1 + shift).
        deadline: asked before each step; True ends the iteration with what is there.
    """

    tolerance: float = 1e-7
    max_matvecs: int = 1000
    step: float | None = None
    deadline: Deadline | None = None

    def solve(self, operator: LinearOperator, rhs: Tensor, shift: Tensor, largest: Tensor) -> Solution:
        """See `InverseSolver.solve`."""
        step = 1 / (largest + shift) if self.step is None else largest.new_full(largest.shape, self.step)
        return iterate(
            operator,
            rhs,
            shift,
            step=step,
            order=1,
            tolerance=self.tolerance,
            max_matvecs=self.max_matvecs,
            deadline=self.deadline,
        )
