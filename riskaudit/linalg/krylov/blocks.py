"""Traces of diagonal blocks of L f(K) L with an interval, from probes of the whole matrix.

A probe z ~ N(0, I) over all coordinates, b = L z, and one iteration on K from b give b_j . [f(K) b]_j for every block j
at once. Its mean is the trace of block j, since the terms across blocks have mean zero; they add variance, so that a
block takes more probes than the whole.

[derived] With M = L f(K) L, 0 <= M <= c, T = tr M_jj and E the projection onto block j, the number is z^T A z with
A = (E M + M E) / 2, tr A = T, ||A|| <= c and ||A||_F^2 <= tr E M^2 E <= c T. For standard normal z and any such A
log E exp(s (z^T A z - T)) <= s^2 ||A||_F^2 / (1 - 2 s c), hence, as in Laurent and Massart (Ann. Statist. 28, 2000,
lemma 1), |mean of N probes - T| <= 2 sqrt(c T x / N) + 2 c x / N but for a probability of exp(-x) on either side.
Solved for T:

    (sqrt(mean - h^2) - h)^2 <= T <= (h + sqrt(mean + 3 h^2))^2,   h^2 = c x / N.

[derived] The iteration's own error: with the residual rho = ||b|| |beta_k [(T_k + eps)^-1]_k1| of the k-th iterate of
(K + eps)^-1 b, that iterate is at most rho / eps off, and that of (K + eps)^-2 b at most rho / eps^2 + rho_2 / eps,
with rho_2 from (T_k + eps)^-2 in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from torch import Tensor

from riskaudit.linalg.krylov.deflation import Deflation
from riskaudit.linalg.krylov.lanczos import KrylovSpace
from riskaudit.linalg.krylov.quadrature import shares_of
from riskaudit.linalg.krylov.tridiagonal import Array, Tridiagonal
from riskaudit.linalg.solution import Interval


@dataclass(frozen=True, eq=False)
class BlockProbe:
    """One probe of one upload.

    Attributes:
        tridiagonal: of the iteration from b.
        products: b_j . q_i over the coordinates of block j, for all basis vectors, [n, k], float64.
        lengths: ||b_j||, [n].
    """

    tridiagonal: Tridiagonal
    products: Array
    lengths: Array

    @classmethod
    def of(cls, start: Tensor, space: KrylovSpace, num_blocks: int) -> BlockProbe:
        """From b [n d] and the iteration that started at it."""
        count = len(space.tridiagonal.diagonal)
        blocks = start.double().reshape(num_blocks, -1)
        basis = by_block(space.basis[:count].double(), num_blocks)
        products = (basis * blocks).sum(-1).mT.cpu().numpy()
        return cls(space.tridiagonal, products, blocks.norm(dim=1).cpu().numpy())

    def form(self, block: int, of_ritz_values: Array) -> float:
        """b_j . [f(K) b]_j as the iteration has it, given f at the Ritz values."""
        vectors = self.tridiagonal.ritz().vectors
        if not len(vectors):
            return 0.0
        return self.tridiagonal.start_norm * float(self.products[block] @ (vectors @ (of_ritz_values * vectors[0])))

    def residual(self, of_ritz_values: Array) -> float:
        """||b|| |beta_k [f(T)]_k1|; infinite where no product was made."""
        vectors = self.tridiagonal.ritz().vectors
        if not len(vectors):
            return math.inf
        entry = float(vectors[-1] @ (of_ritz_values * vectors[0]))
        return self.tridiagonal.start_norm * abs(float(self.tridiagonal.off_diagonal[-1]) * entry)


def block_trace_interval(
    mean: float, error: float, num_probes: int, norm: float, failure: float
) -> tuple[float, float]:
    """Ends of T >= 0.

    Args:
        mean: over the probes.
        error: how far the mean may be off by the iterations' own errors.
        num_probes: N.
        norm: c.
        failure: probability that T lies outside, half for each side.
    """
    if not num_probes or not math.isfinite(norm):
        return 0.0, math.inf
    squared = norm * math.log(2 / failure) / num_probes
    reach = math.sqrt(squared)
    low = math.sqrt(max(0.0, mean - error - squared)) - reach
    high = reach + math.sqrt(max(0.0, mean + error + 3 * squared))
    return max(0.0, low) ** 2, high * high


@final
class BlockTraces:
    """Traces of functions of one block, at as many points as wanted, from the same probes; as `TraceProbes`.

    Args:
        probes: of the upload, each from L P z with P what projects the deflated directions out.
        block: j.
        failure: probability that a returned interval misses.
        total: tr C_j.
        norm: the largest eigenvalue of P C P.
        largest: an upper end of K's largest eigenvalue.
        deflation: the directions of the block that the probes leave out.
        scale: what products with K are rounded relative to.
        share_failure: the same for the effective dimension and what it leaves, where it is another.
    """

    def __init__(
        self,
        probes: Sequence[BlockProbe],
        block: int,
        failure: float,
        total: float,
        *,
        norm: float,
        largest: float,
        deflation: Deflation,
        scale: float = 0.0,
        share_failure: float | None = None,
    ) -> None:
        self.block, self.failure, self.total = block, failure, total
        # Kept as given, so that it can be made again from it.
        self.share_failure = share_failure
        self._share_failure = failure if share_failure is None else share_failure
        self.norm, self.largest, self.deflation = norm, largest, deflation
        self.probes, self.scale = list(probes), scale
        self.remaining_total = max(0.0, total - deflation.trace)
        self._probes = self.probes if self.remaining_total else []
        self.slack = max((probe.tridiagonal.slack(scale) for probe in probes), default=0.0)

    def effective_dimension(self, eps: float) -> Interval:
        """tr [L K (K + eps)^-1 L]_jj for eps > 0."""
        return self._shares(eps)[0]

    def remaining(self, eps: float) -> Interval:
        """tr [L eps (K + eps)^-1 L]_jj for eps > 0."""
        return self._shares(eps)[1]

    def variance(self, eps: float) -> Interval:
        """tr [L K (K + eps)^-2 L]_jj for eps > 0."""
        if math.isinf(eps):
            return Interval(0.0, 0.0, 0.0)
        most, forms, errors = 1 / (4 * eps), [], []
        for probe in self._probes:
            values = np.maximum(probe.tridiagonal.ritz().values, 0.0)
            forms.append(probe.form(self.block, shares_of(values, eps) / (values + eps)))
            first, second = probe.residual(1 / (values + eps)), probe.residual(1 / (values + eps) ** 2)
            errors.append(self._length(probe) * (2 * first / eps + second) + self._rounding(probe, eps) / eps)
        low, high = self._ends(forms, errors, most, self.failure)
        deflated_low, deflated_high = self.deflation.variance_ends(eps, most, self.slack)
        value = self.deflation.variance(eps) + (float(np.mean(forms)) if forms else 0.0)
        return _within(value, deflated_low + low, min(self.total * most, deflated_high + high))

    def inverse_trace(self, least: float = 0.0) -> Interval:
        """tr [H^-1]_jj: nothing bounds it here."""
        return Interval(0.0, 0.0, math.inf)

    def norm_remaining(self, eps: float) -> float:
        """An upper end, for certain, of the norm of [L eps (K + eps)^-1 L]_jj."""
        return self.deflation.share_ends(eps, 1.0, self.slack).left_high + self.norm

    def _shares(self, eps: float) -> tuple[Interval, Interval]:
        if not eps > 0:
            raise ValueError(f"eps must be positive, found {eps}")
        if math.isinf(eps):
            return Interval(0.0, 0.0, 0.0), Interval(self.total, self.total, self.total)
        rest, most = self.remaining_total, 1.0 if math.isinf(self.largest) else self.largest / (self.largest + eps)
        shares, left, errors = [], [], []
        for probe in self._probes:
            values = np.maximum(probe.tridiagonal.ritz().values, 0.0)
            shares.append(probe.form(self.block, shares_of(values, eps)))
            left.append(probe.form(self.block, eps / (values + eps)))
            error = self._length(probe) * probe.residual(1 / (values + eps))
            errors.append(error + self._rounding(probe, eps))
        low, high = self._ends(shares, errors, most, self._share_failure / 2)
        left_low, left_high = self._ends(left, errors, 1.0, self._share_failure / 2)
        deflated = self.deflation.share_ends(eps, most, self.slack)
        least = deflated.low + max(low, rest - left_high)
        greatest = min(deflated.high + min(high, rest - left_low), self.total * most)
        value = self.deflation.share(eps, most) + self._scaled(shares)
        dimension = _within(value, max(0.0, least), greatest)
        least_left = max(deflated.left_low + max(left_low, rest - high), self.total - dimension.high)
        most_left = min(deflated.left_high + min(left_high, rest - low), self.total - dimension.low)
        return dimension, _within(self.total - dimension.value, max(0.0, least_left), most_left)

    def _length(self, probe: BlockProbe) -> float:
        return float(probe.lengths[self.block])

    def _rounding(self, probe: BlockProbe, eps: float) -> float:
        """What rounding may do to a share's form: T belongs to K + E with ||E|| at most the slack."""
        return self._length(probe) * probe.tridiagonal.start_norm * min(1.0, self.slack / eps)

    def _scaled(self, forms: Sequence[float]) -> float:
        """The trace that forms stand for; the spread of the probes' lengths cancels."""
        squared = sum(self._length(probe) ** 2 for probe in self._probes)
        return self.remaining_total * sum(forms) / squared if squared > 0 else 0.0

    def _ends(self, forms: list[float], errors: list[float], most: float, failure: float) -> tuple[float, float]:
        if not self.remaining_total:
            return 0.0, 0.0
        everything = self.remaining_total * most
        if not forms or not math.isfinite(sum(errors)):
            return 0.0, everything
        mean, error = float(np.mean(forms)), float(np.mean(errors))
        low, high = block_trace_interval(mean, error, len(forms), most * self.norm, failure)
        return min(low, everything), min(high, everything)


def _within(value: float, low: float, high: float) -> Interval:
    """An interval whose value lies inside; ends that crossed by rounding are put in order."""
    low = min(low, high)
    return Interval(min(max(value, low), high), low, high)


def by_block(rows: Tensor, num_blocks: int) -> Tensor:
    """Rows [m, n d] as [m, n, d], m = 0 included, where -1 would leave d open."""
    return rows.reshape(len(rows), num_blocks, rows.shape[1] // num_blocks)
