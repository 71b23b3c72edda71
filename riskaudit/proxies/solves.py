"""Proxies that are the norm of a linear solve, with the interval and evidence of that solve."""

from __future__ import annotations

import math

from torch import Tensor

from riskaudit.proxies.base import ProxyScores, estimate
from riskaudit.proxies.linearisation import Linearisation
from riskaudit.results import Estimate, SolverEvidence


def norm_of_solve(at: Linearisation, rhs: Tensor, shift: float) -> ProxyScores:
    """||(H + shift)^-1 rhs|| / sqrt(d) per sample, for rhs [B, d]."""
    solution, affordable = at.solve(rhs, shift)
    assert solution.low is not None
    assert solution.high is not None
    scale = 1 / math.sqrt(at.dimension)
    columns = (solution.value.norm(dim=-1), solution.low, solution.high, solution.residual)
    norms, lows, highs, residuals = (column.tolist() for column in columns)
    rows, evidence = [], []
    for index, status in enumerate(solution.status):
        tried = affordable[index]
        singular = status == "singular"
        if not tried or singular:
            rows.append(Estimate(value=None, status="singular" if tried else "not_applicable"))
        else:
            # An upper end that isn't finite leaves no interval worth the name.
            low = lows[index] * scale if math.isfinite(highs[index]) else None
            rows.append(estimate(norms[index] * scale, status, low, highs[index] * scale))
        evidence.append(
            SolverEvidence(
                method=at.plan.inverse,
                status=status if tried else "not_applicable",
                residual=residuals[index] if tried and not singular and math.isfinite(residuals[index]) else None,
                matvecs=int(solution.matvecs[index]) if tried else 0,
            )
        )
    return ProxyScores(tuple(rows), _reason(at, shift, affordable), tuple(evidence))


def _reason(at: Linearisation, shift: float, affordable: list[bool]) -> str | None:
    if all(affordable):
        return None
    skipped = f"{affordable.count(False)} of {len(affordable)} samples"
    if shift == 0:
        return (
            f"skipped for {skipped}: without a prior nothing bounds the products that a solve with H needs; "
            "--inverse cg tries it, --solver dense is exact"
        )
    least = min(count for count, tried in zip(at.foretold_products(shift), affordable, strict=True) if not tried)
    return (
        f"skipped for {skipped}: conjugate gradient may need {least:.0f} products or more at this noise and prior, "
        f"the limit is {at.plan.max_matvecs}; --inverse cg tries it, --max-matvecs raises the limit"
    )
