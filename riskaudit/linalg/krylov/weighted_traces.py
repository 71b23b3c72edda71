"""Traces of L f(K) L with an interval, from Gaussian probes, for a symmetric L whose square C is known.

With K = L H L and f(x) = eps / (x + eps) this is the trace of a posterior covariance whose prior has covariance C.
A probe z ~ N(0, I) gives z^T L f(K) L z: a quadratic form of K at L z, which Gauss and Gauss-Radau rules bracket
(`quadrature`), and the mean of the probes has the tails that `traces` derives, with ||L f(K) L|| <= ||C|| max f.
tr C is known, so that the complement tr L (1 - f)(K) L gives ends as well, and the narrower ones count.

Deflation: few directions carry most of the variance of images. For orthonormal eigenvectors u_i of C with its
largest eigenvalues, tr L f(K) L = sum_i u_i^T L f(K) L u_i + tr P L f(K) L P with P orthogonal to them. A form at
L u_i is bracketed for certain, by an iteration of its own; the rest is probed from L P z, and its norm is at most
C's largest eigenvalue that is left, since P and L commute.

[derived] Rounding: a product with K is three products one after the other, so its error is relative to
||C|| ||H||, which may exceed ||K|| where the prior is narrow in the directions that H sees best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import numpy as np

from riskaudit.linalg.krylov.quadrature import Quadrature, middle
from riskaudit.linalg.krylov.traces import trace_interval
from riskaudit.linalg.krylov.tridiagonal import Array, Tridiagonal
from riskaudit.linalg.solution import Interval

ROUNDING = 1e-12


@final
class WeightedTraces:
    """Traces of functions of one sample's K, weighted with C, at as many points as wanted, from the same probes.

    Each interval holds with probability 1 - ``failure`` (and whatever probability ``largest`` holds with), for an
    eps that doesn't depend on the probes.

    Args:
        tridiagonals: of the N probes: iterations on K that started at L P z, z ~ N(0, I) independent of each other.
        failure: probability that a returned interval misses.
        weight_trace: tr C.
        weight_norm: the largest eigenvalue of C that isn't deflated.
        largest: an upper end of K's largest eigenvalue, at least as large as what products are rounded relative to.
        deflated: iterations on K that started at L u_i.
        deflated_trace: the sum of the eigenvalues of the u_i.
    """

    def __init__(
        self,
        tridiagonals: Sequence[Tridiagonal],
        failure: float,
        weight_trace: float,
        weight_norm: float,
        largest: float = math.inf,
        deflated: Sequence[Tridiagonal] = (),
        deflated_trace: float = 0.0,
    ) -> None:
        self.failure, self.weight_trace, self.weight_norm, self.largest = failure, weight_trace, weight_norm, largest
        scale = largest if math.isfinite(largest) else 0.0
        self._rules, self._known = Quadrature(tridiagonals, largest=scale), Quadrature(deflated, largest=scale)
        self._rest = max(0.0, weight_trace - deflated_trace)

    def remaining(self, eps: float) -> Interval:
        """tr L eps (K + eps)^-1 L: of a posterior covariance, where eps is the variance of the noise.

        The lower end grows with eps.
        """
        if math.isinf(eps):
            return Interval(self.weight_trace, self.weight_trace, self.weight_trace)
        most = 1.0 if math.isinf(self.largest) else self.largest / (self.largest + eps)
        told_lows, told_highs, left_lows, left_highs = _share_ends(self._rules, eps, most)
        told_low, told_high = self._ends(told_lows, told_highs, most, self.failure / 2)
        left_low, left_high = self._ends(left_lows, left_highs, 1.0, self.failure / 2)
        known_told_low, known_told_high, known_low, known_high = _share_ends(self._known, eps, most)
        known_told = middle(known_told_low, known_told_high, self._known.squared_norms)
        low = float(known_low.sum()) + max(left_low, self._rest - told_high)
        high = float(known_high.sum()) + min(left_high, self._rest - told_low)
        if high > (1 - ROUNDING) * self.weight_trace:
            # Nothing is known then, and a sum of parts may be off by rounding.
            high = self.weight_trace
        value = self._value(known_told, middle(told_lows, told_highs, self._rules.squared_norms))
        return _within(self.weight_trace - value, max(low, (1 - most) * self.weight_trace), high)

    def norm(self, eps: float) -> float:
        """An upper end, for certain, of ||L eps (K + eps)^-1 L||.

        That of a positive semidefinite matrix is at most the sum of those of its diagonal blocks: of the deflated
        directions, whose trace is bracketed, and of the rest, where the matrix is at most C.
        """
        return float(_share_ends(self._known, eps, 1.0)[3].sum()) + self.weight_norm

    def variance(self, eps: float) -> Interval:
        """tr L K (K + eps)^-2 L: times eps, the variance of the MAP attacker's error."""
        if math.isinf(eps):
            return Interval(0.0, 0.0, 0.0)
        most = 1 / (4 * eps)
        if self.largest < eps:
            # x / (x + eps)^2 increases up to x = eps.
            most = self.largest / (self.largest + eps) / (self.largest + eps)
        low, high = self._ends(*_variance_ends(self._rules, eps, most), most, self.failure)
        known_low, known_high = _variance_ends(self._known, eps, most)
        value = self._value(self._known.middle_variances(eps), self._rules.middle_variances(eps))
        return _within(value, float(known_low.sum()) + low, float(known_high.sum()) + high)

    def _value(self, known: Array, probed: Array) -> float:
        """The estimate of tr L f(K) L from those of its forms: at the deflated starts, and at the probes [N]."""
        total = float(self._rules.squared_norms.sum())
        # The spread of the probes' own lengths cancels in the quotient.
        share = float(probed.sum()) / total if total > 0 else 0.0
        return float(known.sum()) + self._rest * share

    def _ends(self, lows: Array, highs: Array, most: float, failure: float) -> tuple[float, float]:
        """Ends of the trace of P L g(K) L P from the probes' own [N], where 0 <= g <= most."""
        everything = most * self._rest
        if not len(lows):
            return 0.0, everything
        norm = most * self.weight_norm
        low, high = trace_interval(float(np.mean(lows)), float(np.mean(highs)), len(lows), norm, failure)
        return min(low, everything), min(high, everything)


def _share_ends(rules: Quadrature, eps: float, most: float) -> tuple[Array, Array, Array, Array]:
    """Ends [N] of b^T K (K + eps)^-1 b, then of b^T eps (K + eps)^-1 b; K (K + eps)^-1 is at most ``most``."""
    squared = rules.squared_norms
    lows, highs = rules.shares(eps)
    highs = np.minimum(highs, most * squared)
    lows = np.minimum(lows, highs)
    # The second without cancellation where little is left.
    left = np.minimum(eps * rules.inverse_forms(eps).first_low, squared)
    left = np.maximum(left, squared - highs)
    return lows, highs, left, np.maximum(left, squared - lows)


def _variance_ends(rules: Quadrature, eps: float, most: float) -> tuple[Array, Array]:
    """Ends [N] of b^T K (K + eps)^-2 b; K (K + eps)^-2 is at most ``most``."""
    forms = rules.inverse_forms(eps)
    highs = np.minimum(forms.first_high - eps * forms.second_low, most * rules.squared_norms).clip(0.0)
    return np.minimum((forms.first_low - eps * forms.second_high).clip(0.0), highs), highs


def _within(value: float, low: float, high: float) -> Interval:
    """An interval whose value lies inside; ends that crossed by rounding are put in order."""
    low = max(0.0, min(low, high))
    return Interval(min(max(value, low), high), low, high)
