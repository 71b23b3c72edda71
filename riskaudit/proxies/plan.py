"""Which solvers a linearisation uses, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Solvers and their limits for a whole audit.

    Attributes:
        solver: name in `riskaudit.linalg.EIGENVALUE_SOLVERS`.
        solver_reason: why, for the report.
        inverse: name in `riskaudit.linalg.INVERSE_SOLVERS`.
        inverse_reason: why, for the report.
        inverse_chosen: the user named the inverse, so it runs whatever it is expected to cost.
        tolerance: relative error at which an iteration has converged.
        max_matvecs: products per sample and solve at most.
        failure: probability, per sample, that a certified upper end of l_1 is too low.
    """

    solver: str
    solver_reason: str
    inverse: str
    inverse_reason: str
    inverse_chosen: bool
    tolerance: float
    max_matvecs: int
    failure: float
