"""Traces of functions of H with an interval, from Gaussian probes.

[derived; cf. Laurent and Massart, Ann. Statist. 28 (2000); Cortinovis and Kressner, Found. Comput. Math.
22 (2022)] For a positive semidefinite A with trace T and norm at most c, and z ~ N(0, I), log E exp(s
z^T A z) = -1/2 sum_i log(1 - 2 s a_i) is convex in the eigenvalues a_i, so it is largest where T/c of
them equal c. The mean of N probes then has tails no heavier than (c/N) chi^2 with N T/c degrees of
freedom: P(mean beyond E, on either side of T) <= exp(-N/(2c) (E - T - T ln(E/T))). Also with c = T.

Deflation (Meyer, Musco, Musco and Woodruff, "Hutch++", SOSA 2021; Chen and Hallman, "Krylov-aware
stochastic trace estimation", SIAM J. Matrix Anal. Appl. 44, 2023): with orthonormal Ritz vectors y_i of an
earlier space and P the projection orthogonal to them, tr f(H) = sum_i y_i^T f(H) y_i + tr P f(H) P. The
first part is bracketed by the Ritz values t_i and residuals r_i, the second one by probes that start at
P z. Their iteration runs on H itself, so their quadrature is that of f(H).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

import numpy as np

from riskaudit.linalg.krylov.quadrature import Quadrature, middle, shares_of
from riskaudit.linalg.krylov.tridiagonal import Array, Tridiagonal
from riskaudit.linalg.solution import Interval

# A Ritz pair is worth deflating where r^2 / eps is at most this share of t + eps.
DEFLATABLE_SHARE = 0.01


def trace_interval(
    low_mean: float, high_mean: float, num_probes: int, norm: float, failure: float
) -> tuple[float, float]:
    """Ends of T = tr A for a positive semidefinite A, from Gaussian probes of which each is bracketed.

    Args:
        low_mean: mean over the probes of the lower ends of z^T A z.
        high_mean: mean of the upper ends; may be infinite.
        num_probes: N.
        norm: an upper bound of ||A||, or infinity. T is one too, so there are ends without it.
        failure: probability that T lies outside, half for each side; in (0, 1).
    """
    if not num_probes:
        return 0.0, math.inf
    reach = 2 * math.log(2 / failure) / num_probes
    low, high = low_mean / _mean_ratio(reach, upper=True), math.inf
    smallest = _mean_ratio(reach, upper=False)
    if smallest > 0:
        high = high_mean / smallest
    if norm * reach < low_mean:
        low = max(low, low_mean * _trace_ratio(norm * reach / low_mean, upper=False))
    if 0 < high_mean < math.inf and math.isfinite(norm):
        high = min(high, high_mean * _trace_ratio(norm * reach / high_mean, upper=True))
    return low, high


def _trace_ratio(reach: float, *, upper: bool) -> float:
    """The u = T/E above or below 1 where 1 - u + u ln u = reach, the tail bound for a given norm.

    Below 1 there is one for reach < 1 only.
    """
    start = math.sqrt(2 * reach) + reach
    if not upper:
        rest = 1 - reach
        start = max(-math.sqrt(2 * reach), rest / (2 * (1 - math.log(rest))) - 1)
    return 1 + _root(start, lambda x: (1 + x) * math.log1p(x) - x - reach, math.log1p)


def _mean_ratio(reach: float, *, upper: bool) -> float:
    """The x = E/T above or below 1 where x - 1 - ln x = reach, the tail bound for a norm of T; 0 at worst."""
    start = math.sqrt(2 * reach) + reach
    if not upper:
        start = max(-math.sqrt(2 * reach), math.exp(-1 - reach) - 1)
        if start == -1:
            return 0.0
    return 1 + _root(start, lambda x: x - math.log1p(x) - reach, lambda x: x / (1 + x))


def _root(start: float, function: Callable[[float], float], slope: Callable[[float], float]) -> float:
    """Newton's method on a convex function from outside its roots: it never steps over the nearer one.

    So it also errs outward, should it stop early. Arguments are distances from 1, which keeps small ones exact.
    """
    x = start
    for _ in range(100):
        step = function(x) / slope(x) if x else 0.0
        x -= step
        if abs(step) <= 1e-13 * abs(x):
            break
    return x


def effective_dimension_bounds(
    ritz_values: Array, dimension: int, trace_high: float, eps: float, slack: float = 0.0
) -> tuple[float, float]:
    """Ends of d_eff = sum_i l_i / (l_i + eps) that hold for certain; no probe is needed.

    [derived] f(x) = x / (x + eps) increases, and Ritz values interlace, so sum f(t_i) <= d_eff. It is
    concave, so tr f(H) is at most the trace of f of H's diagonal blocks, and that of the block outside
    the Krylov space at most (n - k) f(its mean eigenvalue).

    Args:
        ritz_values: t_i of any subspace, [k].
        dimension: n.
        trace_high: an upper end of tr H.
        eps: > 0.
        slack: by how much rounding may have moved a Ritz value (`Tridiagonal.slack`). Without it, rounding
            in H's null space passes for information as soon as eps is as small.
    """
    low = float(np.sum(shares_of(np.maximum(ritz_values - slack, 0.0), eps)))
    above = np.maximum(ritz_values + slack, 0.0)
    high, remaining = float(np.sum(shares_of(above, eps))), dimension - len(ritz_values)
    if remaining:
        rest = max(0.0, trace_high - float(np.sum(np.maximum(ritz_values - slack, 0.0))))
        high += remaining * (rest / (rest + remaining * eps) if math.isfinite(rest) else 1.0)
    return low, high


def deflatable(tridiagonal: Tridiagonal, eps: float) -> list[int]:
    """Positions of the Ritz pairs that bracket y^T f(H) y within about 1 %, so are worth deflating."""
    values, _, residuals = tridiagonal.ritz()
    error = (residuals + tridiagonal.slack()) ** 2 / eps
    return [int(index) for index in np.flatnonzero(error <= DEFLATABLE_SHARE * (np.maximum(values, 0.0) + eps))]


@final
class TraceProbes:
    """Traces of functions of one sample's H, at as many points as wanted, from the same probes.

    Values lie between the Gauss and the Gauss-Radau rule (`quadrature.middle`). Each interval holds
    with probability 1 - ``failure`` (and whatever probability ``largest`` and a ``least`` hold with), for an
    eps that doesn't depend on the probes. Intervals at several eps hold each, not all at once: divide
    ``failure`` by their number where all are needed together, or where eps was chosen by looking at them.

    Args:
        tridiagonals: of the N probes: iterations on H that started at P z, z ~ N(0, I) independent of each
            other and of the deflated vectors. Without deflation P = I.
        failure: probability that a returned interval misses.
        deflated_values: Ritz values t_i of the orthonormal deflated vectors, [m].
        deflated_residuals: ||H y_i - t_i y_i||, [m].
        largest: an upper end of l_1, which bounds the functions' norms and so narrows small traces.
        dimension: n; read off the probes where there are any.

    Attributes:
        slack: rounding of H's products that is allowed for, in units of H; 0 if no probe tells of it.
    """

    def __init__(
        self,
        tridiagonals: Sequence[Tridiagonal],
        failure: float,
        deflated_values: Array | None = None,
        deflated_residuals: Array | None = None,
        largest: float = math.inf,
        dimension: int | None = None,
    ) -> None:
        if dimension is None:
            if not tridiagonals:
                raise ValueError("neither probes nor a dimension are given")
            dimension = tridiagonals[0].dimension
        self.dimension, self.failure, self.largest = dimension, failure, largest
        self.values = np.zeros(0) if deflated_values is None else np.maximum(deflated_values, 0.0)
        self.residuals = np.zeros(0) if deflated_residuals is None else deflated_residuals
        if len(self.values) != len(self.residuals):
            raise ValueError(f"{len(self.values)} Ritz values, but {len(self.residuals)} residuals")
        # Where all is deflated nothing is left to probe.
        self._tridiagonals = list(tridiagonals) if self.remaining else []
        # Products are rounded relative to H's largest eigenvalue, which a projected start may never meet.
        self._known = max([float(self.values.max(initial=0.0)), *(each.largest for each in tridiagonals)])
        self.slack = max((each.slack(self._known) for each in tridiagonals), default=0.0)
        self._rules = Quadrature(self._tridiagonals, largest=self._known)

    @property
    def remaining(self) -> int:
        """Dimension of the space that the probes are in, n - m."""
        return self.dimension - len(self.values)

    def effective_dimension(self, eps: float) -> Interval:
        """d_eff = tr f(H), f(x) = x / (x + eps).

        Both f(H) and 1 - f(H) = eps (H + eps)^-1 are probed by the same forms, with half of the failure
        each: of the two intervals the narrower end counts.

        Raises:
            ValueError: eps isn't positive.
        """
        _check_positive(eps)
        if math.isinf(eps):
            return Interval(0.0, 0.0, 0.0)
        squared, rules, remaining = self._rules.squared_norms, self._rules, self.remaining
        norm = 1.0 if math.isinf(self.largest) else self.largest / (self.largest + eps)
        lows, highs = rules.shares(eps)
        highs = np.minimum(highs, norm * squared)
        direct_low, direct_high = self._ends(np.minimum(lows, highs), highs, norm, self.failure / 2)
        # The same forms again, but eps b^T (H + eps)^-1 b without cancellation where eps is small.
        others = eps * rules.inverse_forms(eps).first_low
        other_low, other_high = self._ends(others, np.maximum(others, squared - lows), 1.0, self.failure / 2)
        known_low, known_high = self._deflated_share(eps)
        # Ritz values interlace, so this lower end is certain.
        certain = float(np.sum(shares_of(np.maximum(self.values - self.slack, 0.0), eps)))
        low = max(known_low + max(direct_low, remaining - other_high), certain)
        high = min(known_high + min(direct_high, remaining - other_low), self.dimension * norm)
        return _within(
            float(np.sum(shares_of(self.values, eps))) + self._scaled(middle(lows, highs, squared)), low, high
        )

    def variance_trace(self, eps: float) -> Interval:
        """tr h(H), h(x) = x / (x + eps)^2: times sigma^2, the variance of the MAP attacker's error.

        Raises:
            ValueError: eps isn't positive.
        """
        _check_positive(eps)
        if math.isinf(eps):
            return Interval(0.0, 0.0, 0.0)
        norm = 1 / (4 * eps)
        if self.largest < eps:
            # h increases up to x = eps.
            norm = self.largest / (self.largest + eps) / (self.largest + eps)
        forms = self._rules.inverse_forms(eps)
        squared = self._rules.squared_norms
        highs = np.minimum(forms.first_high - eps * forms.second_low, norm * squared).clip(0.0)
        lows = np.minimum((forms.first_low - eps * forms.second_high).clip(0.0), highs)
        low, high = self._ends(lows, highs, norm, self.failure)
        known_low, known_high = self._deflated_variance(eps)

        known = float(np.sum(shares_of(self.values, eps) / (self.values + eps)))
        return _within(
            known + self._scaled(self._rules.middle_variances(eps)),
            known_low + low,
            min(self.dimension * norm, known_high + high),
        )

    def inverse_trace(self, least: float = 0.0) -> Interval:
        """tr H^-1: times sigma^2, the squared error of an attacker without a prior.

        Args:
            least: a lower end of l_n. At 0, or too near to be told from it, only a lower end comes out.
        """
        forms = Quadrature(self._tridiagonals, least, self._known).inverse_forms(0.0)
        certified = least > 2 * self.slack
        low, high = self._ends(forms.first_low, forms.first_high, 1 / least if certified else math.inf, self.failure)
        known_low = float(np.sum(1 / np.maximum(self.values + self.slack, 1e-300)))
        known_high = math.inf if len(self.values) else 0.0
        if certified:
            errors = (self.residuals + self.slack) ** 2 / least
            known_high = float(np.sum(_reciprocal(self.values - self.slack - errors, least)))
        return _within(
            known_low + self._scaled(middle(forms.first_low, forms.first_high)), known_low + low, known_high + high
        )

    def trace(self) -> Interval:
        """tr H, narrower where ``largest`` is known: its diagonal blocks' traces are known exactly."""
        lows, highs = [], []
        for each, squared in zip(self._tridiagonals, self._rules.squared_norms.tolist(), strict=True):
            # z^T H z = ||z||^2 alpha_1. Of a probe that made no product it lies between 0 and ||z||^2 l_1.
            made = each.num_products > 0
            lows.append(max(0.0, squared * (each.diagonal[0] - self.slack)) if made else 0.0)
            highs.append(squared * (each.diagonal[0] + self.slack if made else self.largest) if squared else 0.0)
        low, high = self._ends(np.array(lows), np.array(highs), self.largest, self.failure)
        known, blur = float(self.values.sum()), len(self.values) * self.slack
        high = min(known + blur + high, self.dimension * self.largest)
        return _within(known + (float(np.mean(lows)) if lows else 0.0), max(0.0, known - blur) + low, high)

    def _scaled(self, forms: Array) -> float:
        """The trace of P A P that the probes' own forms [N] stand for; the spread of their lengths cancels."""
        total = float(self._rules.squared_norms.sum())
        return self.remaining * float(forms.sum()) / total if total > 0 else 0.0

    def _ends(self, lows: Array, highs: Array, norm: float, failure: float) -> tuple[float, float]:
        """Ends of the trace of P A P from the probes' own [N], where norm bounds ||A||."""
        if not self.remaining:
            return 0.0, 0.0
        if not len(lows):
            return 0.0, self.remaining * norm
        low, high = trace_interval(float(np.mean(lows)), float(np.mean(highs)), len(lows), norm, failure)
        return low, min(high, self.remaining * norm)

    def _deflated_share(self, eps: float) -> tuple[float, float]:
        """Ends of sum_i y_i^T f(H) y_i.

        f is operator concave, so each term is at most f(t_i). From below, with M = H + s and s >= eps, the
        Schur complement of M on y_i gives 1 / (y^T M^-1 y) >= t + s - r^2 / s; s = 2 r^2 / t is the best.
        """
        high = float(np.sum(shares_of(self.values + self.slack, eps)))
        values, residuals = np.maximum(self.values - self.slack, 0.0), self.residuals + self.slack
        positive = values > 0
        values, squares = values[positive], residuals[positive] ** 2
        shifts = np.maximum(eps, 2 * squares / values)
        # 1 - s / (t + s - r^2 / s), divided through by s.
        gained = values - squares / shifts
        return float(np.sum(gained / (gained + shifts))), high

    def _deflated_variance(self, eps: float) -> tuple[float, float]:
        """Ends of sum_i y_i^T h(H) y_i, from those of both inverse forms of y_i.

        M y = (t + eps) y + r w gives M^-1 y = (y - r M^-1 w) / (t + eps), so a norm of at most
        (1 + r / eps) / (t + eps).
        """
        below, residuals = np.maximum(self.values - self.slack, 0.0) + eps, self.residuals + self.slack
        first_low = 1 / (self.values + self.slack + eps)
        first_high = _reciprocal(below - residuals**2 / eps, eps)
        second_high = np.minimum(((1 + residuals / eps) / below) ** 2, first_high / eps)
        lows = np.maximum(first_low - eps * second_high, 0.0)
        # y^T M^-2 y >= (y^T M^-1 y)^2.
        highs = np.minimum(first_high - eps * first_low**2, 1 / (4 * eps))
        return float(np.sum(np.minimum(lows, highs))), float(np.sum(highs))


def _check_positive(eps: float) -> None:
    if not eps > 0:
        raise ValueError(f"eps must be positive, found {eps}")


def _reciprocal(values: Array, least: float) -> Array:
    """1 / value, where a value below ``least`` is known to be at least that."""
    return 1 / np.maximum(values, least)


def _within(value: float, low: float, high: float) -> Interval:
    """An interval whose value lies inside; ends that crossed by rounding are put in order."""
    low = min(low, high)
    return Interval(min(max(value, low), high), low, high)
