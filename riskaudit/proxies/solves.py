"""Proxies that are the norm of a linear solve, with the interval and evidence of that solve."""

from __future__ import annotations

import math

from torch import Tensor

from riskaudit.linalg import Interval
from riskaudit.proxies.base import ProxyScores, estimate, interval
from riskaudit.proxies.linearisation import Linearisation
from riskaudit.results import Estimate, SolverEvidence


def norm_of_solve(at: Linearisation, rhs: Tensor, shift: float) -> ProxyScores:
    """||(H + shift)^-1 rhs|| / sqrt(d) per sample, for rhs [B, d]."""
    return _bracketed(at, rhs, shift) if at.plan.inverse == "quadrature" else _solved(at, rhs, shift)


def _bracketed(at: Linearisation, rhs: Tensor, shift: float) -> ProxyScores:
    """By Gauss and Gauss-Radau rules, without solving."""
    found, scale = at.brackets.inverse_norms(rhs, shift), 1 / math.sqrt(at.dimension)
    rows, evidence = [], []
    for norm, matvecs in zip(found.intervals, found.matvecs, strict=True):
        row = interval(
            Interval(norm.value * scale, norm.low * scale, norm.high * scale), "bracketed", nothing=(0.0, math.inf)
        )
        rows.append(row)
        evidence.append(SolverEvidence(method="quadrature", status=row.status, matvecs=matvecs))
    reason = None
    if shift == 0 and any(row.value is None for row in rows):
        reason = (
            "without a prior and a lower end of H's smallest eigenvalue nothing bounds this error from above; "
            "the lower end holds, --inverse cg tries to solve, --solver dense is exact"
        )
    return ProxyScores(tuple(rows), reason, tuple(evidence))


def _solved(at: Linearisation, rhs: Tensor, shift: float) -> ProxyScores:
    solution = at.solve(rhs, shift)
    assert solution.low is not None
    assert solution.high is not None
    scale = 1 / math.sqrt(at.dimension)
    columns = (solution.value.norm(dim=-1), solution.low, solution.high, solution.residual)
    norms, lows, highs, residuals = (column.tolist() for column in columns)
    rows, evidence = [], []
    for index, status in enumerate(solution.status):
        singular = status == "singular"
        if singular:
            rows.append(Estimate(value=None, status="singular"))
        else:
            # An upper end that isn't finite leaves no interval worth the name.
            low = lows[index] * scale if math.isfinite(highs[index]) else None
            rows.append(estimate(norms[index] * scale, status, low, highs[index] * scale))
        evidence.append(
            SolverEvidence(
                method=at.plan.inverse,
                status=status,
                residual=residuals[index] if not singular and math.isfinite(residuals[index]) else None,
                matvecs=int(solution.matvecs[index]),
            )
        )
    return ProxyScores(tuple(rows), None, tuple(evidence))
