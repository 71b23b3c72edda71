"""Directions left out of the probes of a trace, and bracketed for certain instead.

With orthonormal y_i and P the projection orthogonal to them, tr L f(K) L = sum_i y_i^T L f(K) L y_i + tr P L f(K) L P
(Meyer, Musco, Musco and Woodruff, "Hutch++", SOSA 2021). The first part is bracketed here, the second one probed.

- Where L = 1, y_i may be Ritz vectors of an earlier space (Chen and Hallman, "Krylov-aware stochastic trace
  estimation", SIAM J. Matrix Anal. Appl. 44, 2023): their Ritz values t_i and residuals r_i are enough. The probes'
  iteration runs on H itself, so that their quadrature is that of f(H).
- For any L, y_i are eigenvectors of C with its largest eigenvalues, since few directions carry most of the variance of
  images: a form at L y_i is bracketed by an iteration of its own, and P and L commute.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, final

import numpy as np

from riskaudit.linalg.krylov.quadrature import Quadrature, middle, shares_of
from riskaudit.linalg.krylov.tridiagonal import Array, Tridiagonal

# A Ritz pair is worth deflating where r^2 / eps is at most this share of t + eps.
DEFLATABLE_SHARE = 0.01


def deflatable(tridiagonal: Tridiagonal, eps: float) -> list[int]:
    """Positions of the Ritz pairs that bracket y^T f(H) y within about 1 %, so are worth deflating."""
    values, _, residuals = tridiagonal.ritz()
    error = (residuals + tridiagonal.slack()) ** 2 / eps
    return [int(index) for index in np.flatnonzero(error <= DEFLATABLE_SHARE * (np.maximum(values, 0.0) + eps))]


class ShareEnds(NamedTuple):
    """Ends of b^T K (K + eps)^-1 b, and of b^T eps (K + eps)^-1 b ("left"): of each of N starts b, [N]."""

    low: Array
    high: Array
    left_low: Array
    left_high: Array


class SummedShareEnds(NamedTuple):
    """The same, summed over all starts."""

    low: float
    high: float
    left_low: float
    left_high: float


def share_ends(rules: Quadrature, eps: float, most: float) -> ShareEnds:
    """Ends of the shares that rules of N starts give; K (K + eps)^-1 is at most ``most``."""
    squared = rules.squared_norms
    lows, highs = rules.shares(eps)
    highs = np.minimum(highs, most * squared)
    lows = np.minimum(lows, highs)
    # Without cancellation where little is left.
    left = np.minimum(eps * rules.inverse_forms(eps).first_low, squared)
    left = np.maximum(left, squared - highs)
    return ShareEnds(lows, highs, left, np.maximum(left, squared - lows))


def variance_ends(rules: Quadrature, eps: float, most: float) -> tuple[Array, Array]:
    """Ends [N] of b^T K (K + eps)^-2 b; K (K + eps)^-2 is at most ``most``."""
    forms = rules.inverse_forms(eps)
    highs = np.minimum(forms.first_high - eps * forms.second_low, most * rules.squared_norms).clip(0.0)
    return np.minimum((forms.first_low - eps * forms.second_high).clip(0.0), highs), highs


def reciprocal(values: Array, least: float) -> Array:
    """1 / value, where a value below ``least`` is known to be at least that."""
    return 1 / np.maximum(values, least)


@final
class Deflation:
    """The deflated directions of one sample: Ritz pairs where L = 1, or eigenvectors of C.

    Args:
        values: Ritz values t_i of orthonormal Ritz vectors, [m].
        residuals: ||H y_i - t_i y_i||, [m].
        iterations: on K, that started at L y_i.
        eigenvalues: of C, at the y_i of the iterations.
        scale: what products with K are rounded relative to.

    Attributes:
        trace: sum_i y_i^T C y_i.
        largest: the largest Ritz value.
    """

    def __init__(
        self,
        values: Array | None = None,
        residuals: Array | None = None,
        iterations: Sequence[Tridiagonal] = (),
        eigenvalues: Sequence[float] = (),
        scale: float = 0.0,
    ) -> None:
        self.values = np.zeros(0) if values is None else np.maximum(values, 0.0)
        self.residuals = np.zeros(0) if residuals is None else residuals
        if len(self.values) != len(self.residuals):
            raise ValueError(f"{len(self.values)} Ritz values, but {len(self.residuals)} residuals")
        self.trace = len(self.values) + sum(eigenvalues)
        self.largest = float(self.values.max(initial=0.0))
        self.iterations, self.eigenvalues, self.scale = iterations, eigenvalues, scale

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left out of the probes."""
        return not len(self.values) and not self.iterations

    @cached_property
    def _rules(self) -> Quadrature:
        return Quadrature(self.iterations, largest=self.scale)

    def share(self, eps: float, most: float) -> float:
        """An estimate of sum_i y_i^T L K (K + eps)^-1 L y_i; see `share_ends`."""
        if self.is_empty:
            return 0.0
        lows, highs, _, _ = share_ends(self._rules, eps, most)
        forms = middle(lows, highs, self._rules.squared_norms)
        return float(np.sum(shares_of(self.values, eps))) + float(np.sum(forms))

    def variance(self, eps: float) -> float:
        """An estimate of sum_i y_i^T L K (K + eps)^-2 L y_i."""
        if self.is_empty:
            return 0.0
        shares = shares_of(self.values, eps) / (self.values + eps)
        return float(np.sum(shares)) + float(np.sum(self._rules.middle_variances(eps)))

    def share_ends(self, eps: float, most: float, slack: float) -> SummedShareEnds:
        """Ends of sum_i y_i^T L K (K + eps)^-1 L y_i, and of what is left.

        Args:
            eps: > 0.
            most: an upper end of ||K (K + eps)^-1||.
            slack: by how much rounding may have moved a Ritz value.
        """
        if self.is_empty:
            return SummedShareEnds(0.0, 0.0, 0.0, 0.0)
        low, high = self._ritz_shares(eps, slack)
        count = len(self.values)
        ends = [float(np.sum(each)) for each in share_ends(self._rules, eps, most)]
        return SummedShareEnds(ends[0] + low, ends[1] + high, ends[2] + max(0.0, count - high), ends[3] + count - low)

    def variance_ends(self, eps: float, most: float, slack: float) -> tuple[float, float]:
        """Ends of sum_i y_i^T L K (K + eps)^-2 L y_i, likewise."""
        if self.is_empty:
            return 0.0, 0.0
        low, high = self._ritz_variances(eps, slack)
        lows, highs = variance_ends(self._rules, eps, most)
        return low + float(np.sum(lows)), high + float(np.sum(highs))

    def _ritz_shares(self, eps: float, slack: float) -> tuple[float, float]:
        """Ends of sum_i y_i^T f(H) y_i.

        f is operator concave, so each term is at most f(t_i). From below, with M = H + s and s >= eps, the
        Schur complement of M on y_i gives 1 / (y^T M^-1 y) >= t + s - r^2 / s; s = 2 r^2 / t is the best.
        """
        high = float(np.sum(shares_of(self.values + slack, eps)))
        values, residuals = np.maximum(self.values - slack, 0.0), self.residuals + slack
        positive = values > 0
        values, squares = values[positive], residuals[positive] ** 2
        shifts = np.maximum(eps, 2 * squares / values)
        # 1 - s / (t + s - r^2 / s), divided through by s.
        gained = values - squares / shifts
        return float(np.sum(gained / (gained + shifts))), high

    def _ritz_variances(self, eps: float, slack: float) -> tuple[float, float]:
        """Ends of sum_i y_i^T h(H) y_i, from those of both inverse forms of y_i.

        M y = (t + eps) y + r w gives M^-1 y = (y - r M^-1 w) / (t + eps), so a norm of at most
        (1 + r / eps) / (t + eps).
        """
        below, residuals = np.maximum(self.values - slack, 0.0) + eps, self.residuals + slack
        first_low = 1 / (self.values + slack + eps)
        first_high = reciprocal(below - residuals**2 / eps, eps)
        second_high = np.minimum(((1 + residuals / eps) / below) ** 2, first_high / eps)
        lows = np.maximum(first_low - eps * second_high, 0.0)
        # y^T M^-2 y >= (y^T M^-1 y)^2.
        highs = np.minimum(first_high - eps * first_low**2, 1 / (4 * eps))
        return float(np.sum(np.minimum(lows, highs))), float(np.sum(highs))
