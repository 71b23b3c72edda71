"""Proxies that are the norm of a linear solve, with the interval and evidence of that solve."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from riskaudit.linalg import Interval, Solution
from riskaudit.proxies.base import ProxyScores, exact
from riskaudit.results import Estimate, SolverEvidence
from riskaudit.sensitivity.brackets import BracketedNorms
from riskaudit.sensitivity.estimates import estimate, interval
from riskaudit.sensitivity.information import SMALLEST_SHIFT
from riskaudit.sensitivity.linearisation import Linearisation


def norm_of_solve(at: Linearisation, rhs: Tensor, shift: float) -> ProxyScores:
    """||(H + shift)^-1 rhs|| / sqrt(d) per sample, for rhs [B, d]."""
    return _bracketed(at, rhs, shift) if at.plan.inverse == "quadrature" else _solved(at, rhs, shift)


def norm_of_whitened_solve(at: Linearisation) -> ProxyScores:
    """||L (K + sigma^2)^-1 (L J^T delta - sigma^2 L^-1 (x - mu))|| / sqrt(d): the MAP error of a correlated prior."""
    shift = max(at.sigma * at.sigma, SMALLEST_SHIFT)
    if at.posterior_spectrum is not None and at.plan.inverse == "dense":
        found = at.posterior_spectrum
        white = found.prior.inverse_root(at.displacement.double())
        error = found.solve(found.prior.root(at.pulled_noise.double()) - shift * white, shift)
        rows = exact(error.norm(dim=-1) / math.sqrt(at.dimension))
        evidence = SolverEvidence(method="dense", status="exact", matvecs=at.dimension)
        return ProxyScores(rows.estimates, None, (evidence,) * len(at))
    rhs = at.prior.root(at.pulled_noise) - shift * at.prior.inverse_root(at.displacement)
    if at.plan.inverse == "quadrature":
        return _intervals(at, at.posterior_brackets.solution_norms(rhs, shift))
    solution = at.solve_whitened(rhs, shift)
    norm = at.prior.root(solution.value).double().norm(dim=-1)
    # ||L (z - z*)|| <= ||L|| ||residual|| / shift.
    error = at.prior.largest.sqrt() * solution.residual * rhs.double().norm(dim=-1) / shift
    return _graded(at, replace(solution, low=(norm - error).clamp_min(0.0), high=norm + error), norm)


def _bracketed(at: Linearisation, rhs: Tensor, shift: float) -> ProxyScores:
    """By Gauss and Gauss-Radau rules, without solving."""
    scores = _intervals(at, at.brackets.inverse_norms(rhs, shift))
    if shift > 0 or all(row.value is not None for row in scores.estimates):
        return scores
    reason = (
        "without a prior and a lower end of H's smallest eigenvalue nothing bounds this error from above; "
        "the lower end holds, `inverse=cg` tries to solve, `solver=dense` is exact"
    )
    return replace(scores, reason=reason)


def _intervals(at: Linearisation, found: BracketedNorms) -> ProxyScores:
    """Norms over sqrt(d), with the products that each took."""
    scale = 1 / math.sqrt(at.dimension)
    rows, evidence = [], []
    for norm, matvecs in zip(found.intervals, found.matvecs, strict=True):
        row = interval(
            Interval(norm.value * scale, norm.low * scale, norm.high * scale), "bracketed", nothing=(0.0, math.inf)
        )
        rows.append(row)
        evidence.append(SolverEvidence(method="quadrature", status=row.status, matvecs=matvecs))
    return ProxyScores(tuple(rows), None, tuple(evidence))


def _solved(at: Linearisation, rhs: Tensor, shift: float) -> ProxyScores:
    solution = at.solve(rhs, shift)
    return _graded(at, solution, solution.value.norm(dim=-1))


def _graded(at: Linearisation, solution: Solution, value: Tensor) -> ProxyScores:
    """Norms ``value`` [B] over sqrt(d) with the solution's ends, which are those of the same norms."""
    assert solution.low is not None
    assert solution.high is not None
    scale = 1 / math.sqrt(at.dimension)
    columns = (value, solution.low, solution.high, solution.residual)
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
