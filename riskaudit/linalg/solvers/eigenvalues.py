"""Largest eigenvalue of a symmetric positive semidefinite operator: the solver interface.

The Ritz value of a Krylov method lies *below* l_1. Its certified upper end after k products from a
start that is uniform on the sphere holds with a chosen confidence: for power iteration by Kuczynski
and Wozniakowski, "Estimating the largest eigenvalue by the power and Lanczos algorithms with a random
start", SIAM J. Matrix Anal. Appl. 13, 1992, theorem 4.1; for Lanczos see `certificates`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from riskaudit.errors import SettingsError
from riskaudit.linalg.operators import LinearOperator
from riskaudit.linalg.solution import Solution


class EigenvalueSolver(ABC):
    """Finds l_1 of B operators at once."""

    @abstractmethod
    def solve(self, operator: LinearOperator, start: Tensor) -> Solution:
        """Largest eigenvalue per sample.

        Args:
            operator: symmetric positive semidefinite, [B, n, n].
            start: [B, n], standard normal (the certified upper end needs a random direction).
        """


EIGENVALUE_SOLVERS: dict[str, Callable[..., EigenvalueSolver]] = {}


def register_eigenvalue_solver(
    name: str,
) -> Callable[[type[EigenvalueSolver]], type[EigenvalueSolver]]:
    """Class decorator: make a solver known to ``solver`` under ``name``."""

    def register(solver: type[EigenvalueSolver]) -> type[EigenvalueSolver]:
        if name in EIGENVALUE_SOLVERS:
            raise SettingsError(f"the eigenvalue solver {name!r} is registered twice")
        EIGENVALUE_SOLVERS[name] = solver
        return solver

    return register


def power_shortfall(num_products: int, dimension: int, failure: float) -> float:
    """Relative distance e of the Rayleigh quotient below l_1, exceeded with probability at most ``failure``.

    Solves 0.824 sqrt(n) (1 - e)^(k - 1/2) = q for e; 1.0 when nothing is certified.
    """
    if num_products < 1:
        return 1.0
    return min(1.0, 1.0 - math.pow(failure / (0.824 * math.sqrt(dimension)), 1.0 / (num_products - 0.5)))


def certified_upper_end(value: Tensor, shortfall: Tensor) -> Tensor:
    """Theta / (1 - e), infinite where nothing is certified. Both [B], float64."""
    return value / (1.0 - shortfall).clamp_min(0.0)
