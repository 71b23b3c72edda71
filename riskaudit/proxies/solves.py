"""Proxies that are the norm of a linear solve, with the interval and evidence of that solve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from riskaudit.linalg import Solution
from riskaudit.proxies.base import ProxyScores
from riskaudit.results import Estimate, SolverEvidence
from riskaudit.sensitivity.brackets import Brackets
from riskaudit.sensitivity.estimates import estimate, interval
from riskaudit.sensitivity.linearisation import Linearisation
from riskaudit.sensitivity.norms import BracketedNorms


def norm_of_solve(
    linearisation: Linearisation,
    brackets: Brackets,
    root: Callable[[Tensor], Tensor],
    rhs: Tensor,
    shifts: Tensor,
    most: Sequence[float] | None = None,
) -> ProxyScores:
    """||[L (K + shift)^-1 rhs]_j|| / sqrt(d) of every sample j.

    Args:
        linearisation: with the solver.
        brackets: of K.
        root: applies L in the dtype of the solution, [U, n d].
        rhs: [U, n d].
        shifts: [U], float64.
        most: upper ends of the norms that are known beforehand, [U], or None.
    """
    if linearisation.plan.inverse == "quadrature":
        return _bracketed(linearisation, brackets.solution_norms(rhs, shifts, most=most))
    solution = linearisation.solve(brackets, rhs, shifts)
    norm = linearisation.blocks(root(solution.value)).norm(dim=-1).double()
    assert solution.high is not None
    # ||L (z - z*)|| <= ||L|| ||z - z*||.
    error = brackets.prior.largest.sqrt() * (solution.high - solution.value.norm(dim=-1).double())
    error = error.repeat_interleave(linearisation.upload_size)
    return _graded(linearisation, replace(solution, low=(norm - error).clamp_min(0.0), high=norm + error), norm)


def _bracketed(linearisation: Linearisation, norms: BracketedNorms) -> ProxyScores:
    """Norms over sqrt(d), with the products that each took."""
    scales = [1 / math.sqrt(count) for count in linearisation.dimensions.tolist()]
    rows, evidence = [], []
    for norm, matvecs, scale in zip(norms.intervals, norms.matvecs, scales, strict=True):
        row = interval(norm.map(scale.__mul__), "bracketed", nothing=(0.0, math.inf))
        rows.append(row)
        evidence.append(SolverEvidence(method="quadrature", status=row.status, matvecs=matvecs))
    return ProxyScores(tuple(rows), None, tuple(evidence))


def _graded(linearisation: Linearisation, solution: Solution, value: Tensor) -> ProxyScores:
    """Norms ``value`` [B] over sqrt(d) with the solution's ends, which are those of the same norms."""
    assert solution.low is not None
    assert solution.high is not None
    scales = [1 / math.sqrt(count) for count in linearisation.dimensions.tolist()]
    residual = solution.residual.repeat_interleave(linearisation.upload_size)
    columns = (value, solution.low, solution.high, residual)
    norms, lows, highs, residuals = (column.tolist() for column in columns)
    rows, evidence = [], []
    for index in range(len(linearisation)):
        status = solution.status[index // linearisation.upload_size]
        singular, scale = status == "singular", scales[index]
        if singular:
            rows.append(Estimate(value=None, status="singular"))
        else:
            # An upper end that isn't finite leaves no interval worth the name.
            low = lows[index] * scale if math.isfinite(highs[index]) else None
            rows.append(estimate(norms[index] * scale, status, low, highs[index] * scale))
        evidence.append(
            SolverEvidence(
                method=linearisation.plan.inverse,
                status=status,
                residual=residuals[index] if not singular and math.isfinite(residuals[index]) else None,
                matvecs=int(solution.matvecs[index // linearisation.upload_size]),
            )
        )
    return ProxyScores(tuple(rows), None, tuple(evidence))
