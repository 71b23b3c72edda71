"""LAVP, the loss-aware vulnerability proxy: Hong et al., AAAI 2024.

Largest and smallest eigenvalue of the Hessian of the attacker's matching loss at the truth, where the
residual is zero. L2: 2 H. Cosine: (H - v v^T) / ||r||^2 with v = J^T rhat. Each has a Lanczos pass of its
own, since only that certifies how far its eigenvalues may reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg import Interval, Solution
from riskaudit.proxies.base import Proxy, ProxyScores, graded, not_applicable, register
from riskaudit.results import Estimate, Status
from riskaudit.sensitivity.estimates import estimate, interval
from riskaudit.sensitivity.linearisation import Linearisation

SOURCE = "Hong et al., AAAI 2024"


def _bracketed_below(upper: Tensor) -> ProxyScores:
    """A smallest eigenvalue of which only an upper bound [B] is known: it is also at least 0."""
    return ProxyScores(tuple(_below(bound) for bound in upper.tolist()))


def _below(upper: float) -> Estimate:
    """Between 0 and ``upper``; where that isn't finite, r = 0 and the loss has no Hessian."""
    return estimate(
        None, "bracketed" if math.isfinite(upper) else "singular", 0.0 if math.isfinite(upper) else None, upper
    )


def _without_products(solution: Solution, rows: ProxyScores) -> ProxyScores:
    """The same, but nothing is known of samples for which no product was made in time."""
    unknown = Estimate(value=None, low=0.0, status="not_converged")
    products = solution.matvecs.tolist()
    return ProxyScores(tuple(row if count else unknown for row, count in zip(rows.estimates, products, strict=True)))


def _inverse_square(norm: Tensor) -> Tensor:
    """1 / ||r||^2, infinite (so no value comes out) where r = 0."""
    return 1 / norm.square()


def _where_defined(linearisation: Linearisation, status: Sequence[Status]) -> list[Status]:
    """The statuses, but "singular" where r = 0: the cosine loss has no Hessian there."""
    norms = linearisation.gradient_norm.tolist()
    return ["singular" if norm == 0 else regular for norm, regular in zip(norms, status, strict=True)]


def _smallest(values: Tensor, resolution: Tensor, scale: Tensor) -> ProxyScores:
    """Smallest eigenvalues [B] times scale [B]: one that can't be told from zero is bracketed."""
    rows: list[Estimate] = []
    for value, limit, factor in zip(values.tolist(), resolution.tolist(), scale.tolist(), strict=True):
        if value > limit:
            rows.append(estimate(value * factor, "exact", value * factor, value * factor))
        else:
            rows.append(_below((value + limit) * factor))
    return ProxyScores(tuple(rows))


@register
@final
class LavpL2Max(Proxy):
    """2 l_1."""

    id = "lavp_l2_max"
    title = "LAVP, L2 loss, largest"
    short_title = "LAVP L2, largest"
    units = "eigenvalue of the L2 matching loss's Hessian"
    source = SOURCE
    riskier = "higher"
    summary = "Largest curvature of the attacker's L2 matching loss at the private input."
    formula = "2 × the largest eigenvalue of JᵀJ"
    order = 90
    few_products = True

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        largest = linearisation.largest
        high = None if largest.high is None else 2 * largest.high
        return _without_products(largest, graded(2 * largest.value, largest.status, 2 * largest.value, high))


@register
@final
class LavpL2Min(Proxy):
    """2 l_d."""

    id = "lavp_l2_min"
    title = "LAVP, L2 loss, smallest"
    short_title = "LAVP L2, smallest"
    units = "eigenvalue of the L2 matching loss's Hessian"
    source = SOURCE
    riskier = "higher"
    summary = "Smallest curvature of the attacker's L2 matching loss at the private input."
    formula = "2 × the smallest eigenvalue of JᵀJ"
    order = 100

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        if linearisation.spectrum is not None:
            return _smallest(
                linearisation.spectrum.values[:, 0],
                linearisation.spectrum.resolution,
                torch.full_like(linearisation.gradient_norm, 2.0),
            )
        if linearisation.smallest_ritz is None:
            return not_applicable(
                linearisation, "power iteration says nothing of the smallest eigenvalue: `solver=dense`"
            )
        rows = [
            interval(Interval((low + high) / 2, low, high), "bracketed", nothing=(0.0, math.inf))
            if low > 0
            else _below(high)
            for low, high in zip(
                (2 * least for least in linearisation.ends.least),
                (2 * linearisation.smallest_ritz).tolist(),
                strict=True,
            )
        ]
        return _without_products(linearisation.largest, ProxyScores(tuple(rows)))


@register
@final
class LavpCosineMax(Proxy):
    """Largest eigenvalue of (H - v v^T) / ||r||^2."""

    id = "lavp_cosine_max"
    title = "LAVP, cosine loss, largest"
    short_title = "LAVP cosine, largest"
    units = "eigenvalue of the cosine matching loss's Hessian"
    source = SOURCE
    riskier = "higher"
    summary = "Largest curvature of the attacker's cosine matching loss at the private input."
    formula = "the largest eigenvalue of (JᵀJ − v vᵀ) / ‖r‖², with v = Jᵀ r / ‖r‖"
    order = 110
    few_products = True

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        scale = _inverse_square(linearisation.gradient_norm)
        if linearisation.downdated_spectrum is not None:
            value = linearisation.downdated_spectrum[:, -1] * scale
            return graded(value, _where_defined(linearisation, ["exact"] * linearisation.num_uploads), value, value)
        largest, _ = linearisation.downdated
        high = None if largest.high is None else largest.high * scale
        value = largest.value * scale
        return _without_products(largest, graded(value, _where_defined(linearisation, largest.status), value, high))


@register
@final
class LavpCosineMin(Proxy):
    """Smallest eigenvalue of (H - v v^T) / ||r||^2."""

    id = "lavp_cosine_min"
    title = "LAVP, cosine loss, smallest"
    short_title = "LAVP cosine, smallest"
    units = "eigenvalue of the cosine matching loss's Hessian"
    source = SOURCE
    riskier = "higher"
    summary = "Smallest curvature of the attacker's cosine matching loss at the private input."
    formula = "the smallest eigenvalue of (JᵀJ − v vᵀ) / ‖r‖², with v = Jᵀ r / ‖r‖"
    order = 120

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        scale = _inverse_square(linearisation.gradient_norm)
        if linearisation.downdated_spectrum is not None and linearisation.spectrum is not None:
            return _smallest(linearisation.downdated_spectrum[:, 0], linearisation.spectrum.resolution, scale)
        largest, smallest = linearisation.downdated
        if smallest is None:
            return not_applicable(
                linearisation, "power iteration says nothing of the smallest eigenvalue: `solver=dense`"
            )
        return _without_products(largest, _bracketed_below(smallest * scale))
