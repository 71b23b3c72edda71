"""Traces of L f(K) L with an interval, from Gaussian probes, for a symmetric L whose square C is known.

With K = L H L and f(x) = eps / (x + eps) this is the trace of a posterior covariance whose prior has covariance C. With
L = 1 it is tr f(H). A probe z ~ N(0, I) gives z^T L f(K) L z: a quadratic form of K at b = L z, which Gauss and
Gauss-Radau rules bracket (`quadrature`). tr C is known, so that the complement tr L (1 - f)(K) L gives ends as well.

[derived; cf. Laurent and Massart, Ann. Statist. 28 (2000); Cortinovis and Kressner, Found. Comput. Math.
22 (2022)] For a positive semidefinite A with trace T and norm at most c, and z ~ N(0, I), log E exp(s
z^T A z) = -1/2 sum_i log(1 - 2 s a_i) is convex in the eigenvalues a_i, so it is largest where T/c of
them equal c. The mean of N probes then has tails no heavier than (c/N) chi^2 with N T/c degrees of
freedom: P(mean beyond E, on either side of T) <= exp(-N/(2c) (E - T - T ln(E/T))). Also with c = T.
Here ||L f(K) L|| <= ||C|| max f. Where L = 1 ratios to the probes' lengths are narrower (`ratios`), and for f itself
forms of its exponential are narrower still (`exponentials`).

Directions that carry much are left out of the probes, and bracketed for certain (`deflation`).

[derived] Rounding: a product with K is three products one after the other, so its error is relative to
||C|| ||H||, which may exceed ||K|| where C is narrow in the directions that H sees best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import final

import numpy as np

from riskaudit.linalg.krylov.deflation import Deflation, ShareEnds, reciprocal, share_ends, variance_ends
from riskaudit.linalg.krylov.exponentials import RATIO_SHARE, Strengths, share_ends_by_exponentials
from riskaudit.linalg.krylov.quadrature import Quadrature, middle, shares_of
from riskaudit.linalg.krylov.ratios import mean_ends
from riskaudit.linalg.krylov.tridiagonal import Array, Tridiagonal
from riskaudit.linalg.solution import Interval

# What is left of a trace, where the ends of its parts add up to all of it but for this share, is all of it.
SUM_ROUNDING = 1e-12
# How far the ends of d_eff may lie from a single probe's, relative to the dimension, where nothing else is asked for.
DEFAULT_HALF_WIDTH = 0.04


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
    low, high = low_mean / _mean_ratio(reach, upper=True), trace_high(high_mean, num_probes, norm, failure / 2)
    if norm * reach < low_mean:
        low = max(low, low_mean * _trace_ratio(norm * reach / low_mean, upper=False))
    return low, high


def trace_high(mean: float, num_probes: int, norm: float, failure: float) -> float:
    """The upper end alone, which misses with this probability; arguments as of `trace_interval`."""
    if not num_probes:
        return math.inf
    reach = 2 * math.log(1 / failure) / num_probes
    smallest = _mean_ratio(reach, upper=False)
    high = mean / smallest if smallest > 0 else math.inf
    if 0 < mean < math.inf and math.isfinite(norm):
        high = min(high, mean * _trace_ratio(norm * reach / mean, upper=True))
    return high


def form_high(trace: float, norm: float, failure: float) -> float:
    """What a single z^T A z exceeds with this probability at most, given upper ends of tr A and ||A||, z ~ N(0, I)."""
    if not (trace > 0 and math.isfinite(trace)):
        return max(0.0, trace)
    return trace * _mean_ratio(2 * norm * math.log(1 / failure) / trace, upper=True)


def _trace_ratio(reach: float, *, upper: bool) -> float:
    """The u = T/E above or below 1 where 1 - u + u ln u = reach, the tail bound for a given norm.

    Below 1 there is one for reach < 1 only.
    """
    start = math.sqrt(2 * reach) + reach
    if not upper:
        rest = 1 - reach
        start = max(-math.sqrt(2 * reach), rest / (2 * (1 - math.log(rest))) - 1)
    return 1 + _root(start, lambda x: (1 + x) * math.log1p(x) - x - reach, math.log1p)


@lru_cache(maxsize=64)
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


@final
class TraceProbes:
    """Traces of functions of one sample's K, weighted with C, at as many points as wanted, from the same probes.

    Values lie between the Gauss and the Gauss-Radau rule (`quadrature.middle`). Each interval holds
    with probability 1 - ``failure`` (and whatever probability ``largest`` and a ``least`` hold with), for an
    eps that doesn't depend on the probes. Intervals at several eps hold each, not all at once: divide
    ``failure`` by their number where all are needed together, or where eps was chosen by looking at them.

    Args:
        tridiagonals: of the N probes: iterations on K that started at L P z, z ~ N(0, I) independent of each
            other and of the deflated directions, which P projects out. Without deflation P = 1.
        failure: probability that a returned interval misses.
        total: tr C, the dimension where L = 1.
        norm: the largest eigenvalue of P C P, 1 where L = 1.
        largest: an upper end of K's largest eigenvalue, which bounds the functions' norms and so narrows small traces.
        scale: what products with K are rounded relative to, where that exceeds all Ritz values.
        deflation: the directions that the probes leave out.
        ritz_values: where L = 1, of any subspace: they bound the effective dimension for certain.
        share_failure: the same for the effective dimension and what it leaves, where it is another.
        looks: at how many numbers of probes somebody looks, of which any may turn out to be the last.
        half_width: of the effective dimension's interval relative to n, where L = 1: it comes out narrowest there.

    Attributes:
        slack: rounding of products that is allowed for, in units of K; 0 if no probe tells of it.
        white: whether L is known to be 1.
    """

    def __init__(
        self,
        tridiagonals: Sequence[Tridiagonal],
        failure: float,
        total: float,
        *,
        norm: float = 1.0,
        largest: float = math.inf,
        scale: float = 0.0,
        deflation: Deflation | None = None,
        ritz_values: Array | None = None,
        share_failure: float | None = None,
        looks: int = 1,
        half_width: float = DEFAULT_HALF_WIDTH,
    ) -> None:
        # Kept as given, so that it can be made again from them.
        self.failure, self.total, self.norm, self.largest = failure, total, norm, largest
        self.share_failure, self.looks, self.half_width = share_failure, looks, half_width
        self._failure = failure / looks
        self._share_failure, self._looks = failure if share_failure is None else share_failure, looks
        self.deflation, self.ritz_values, self.white = deflation or Deflation(), ritz_values, ritz_values is not None
        self.tridiagonals, self.scale = list(tridiagonals), scale
        self.remaining_total = max(0.0, total - self.deflation.trace)
        # Where all is deflated nothing is left to probe.
        self._tridiagonals = self.tridiagonals if self.remaining_total else []
        # A projected start may never meet the largest eigenvalue.
        self._scale = max([scale, self.deflation.largest, *(each.largest for each in tridiagonals)])
        self.slack = max((each.slack(self._scale) for each in tridiagonals), default=0.0)
        self._rules = Quadrature(self._tridiagonals, largest=self._scale)
        self._exponential_failure = (1 - RATIO_SHARE) * self._share_failure
        self._strengths = Strengths.for_width(total, self._exponential_failure, half_width)
        self._shares: tuple[float, Interval, Interval] | None = None

    def effective_dimension(self, eps: float) -> Interval:
        """tr L K (K + eps)^-1 L; where L = 1, d_eff = tr f(H) with f(x) = x / (x + eps).

        Raises:
            ValueError: eps isn't positive.
        """
        return self._both_shares(eps)[0]

    def remaining(self, eps: float) -> Interval:
        """tr L eps (K + eps)^-1 L: tr C less the effective dimension. The lower end grows with eps.

        Raises:
            ValueError: eps isn't positive.
        """
        return self._both_shares(eps)[1]

    def coarseness(self, eps: float) -> float:
        """The part of the effective dimension's width that is the probes' own brackets', not their number's."""
        lows, highs = self._rules.shares(eps)
        return self._scaled(highs - lows)

    def _both_shares(self, eps: float) -> tuple[Interval, Interval]:
        """The effective dimension and what is left; the last answer is remembered, since they are asked for in turn."""
        _check_positive(eps)
        if self._shares is None or self._shares[0] != eps:
            self._shares = eps, *self._computed_shares(eps)
        return self._shares[1:]

    def _computed_shares(self, eps: float) -> tuple[Interval, Interval]:
        """Both are probed by the same forms, with half of the failure each: the narrower ends count."""
        if math.isinf(eps):
            return Interval(0.0, 0.0, 0.0), Interval(self.total, self.total, self.total)
        rest, most = self.remaining_total, 1.0 if math.isinf(self.largest) else self.largest / (self.largest + eps)
        probed = share_ends(self._rules, eps, most)
        if self.white:
            low, high = self._white_shares(probed, eps, most)
            left_low, left_high = rest - high, rest - low
        else:
            failure = self._share_failure / self._looks / 2
            low, high = self._ends(probed.low, probed.high, most, failure)
            left_low, left_high = self._ends(probed.left_low, probed.left_high, 1.0, failure)
        deflated = self.deflation.share_ends(eps, most, self.slack)
        # Ritz values interlace, so this lower end is certain.
        certain = float(np.sum(shares_of(np.maximum(self.deflation.values - self.slack, 0.0), eps)))
        least = max(deflated.low + max(low, rest - left_high), certain)
        greatest = min(deflated.high + min(high, rest - left_low), self.total * most)
        if self.ritz_values is not None:
            sure_low, sure_high = effective_dimension_bounds(
                self.ritz_values, int(self.total), self.trace().high, eps, self.slack
            )
            least, greatest = max(least, sure_low), min(greatest, sure_high)
        if greatest > (1 - SUM_ROUNDING) * self.total:
            # Nothing is known then, and a sum of parts may be off by rounding.
            greatest = self.total
        value = self.deflation.share(eps, most) + self._scaled(
            middle(probed.low, probed.high, self._rules.squared_norms)
        )
        dimension = _within(value, least, greatest)
        least_left = max(deflated.left_low + max(left_low, rest - high), self.total - dimension.high)
        most_left = min(deflated.left_high + min(left_high, rest - low), self.total - dimension.low)
        if most_left > (1 - SUM_ROUNDING) * self.total:
            most_left = self.total
        return dimension, _within(self.total - dimension.value, max(0.0, least_left), most_left)

    def norm_remaining(self, eps: float) -> float:
        """An upper end, for certain, of ||L eps (K + eps)^-1 L||.

        That of a positive semidefinite matrix is at most the sum of those of its diagonal blocks: of the deflated
        directions, whose trace is bracketed, and of the rest, where the matrix is at most C.
        """
        return self.deflation.share_ends(eps, 1.0, self.slack).left_high + self.norm

    def variance(self, eps: float) -> Interval:
        """tr L h(K) L, h(x) = x / (x + eps)^2: times the noise's variance, that of the MAP attacker's error.

        Raises:
            ValueError: eps isn't positive.
        """
        _check_positive(eps)
        if math.isinf(eps):
            return Interval(0.0, 0.0, 0.0)
        most = 1 / (4 * eps)
        if self.largest < eps:
            # h increases up to x = eps.
            most = self.largest / (self.largest + eps) / (self.largest + eps)
        low, high = self._ends(*variance_ends(self._rules, eps, most), most, self._failure)
        deflated_low, deflated_high = self.deflation.variance_ends(eps, most, self.slack)
        value = self.deflation.variance(eps) + self._scaled(self._rules.middle_variances(eps))
        # x / (x + eps)^2 is 1 / (x + eps) at most.
        most_left = self.remaining(eps).high / eps
        return _within(value, deflated_low + low, min(self.total * most, deflated_high + high, most_left))

    def inverse_trace(self, least: float = 0.0) -> Interval:
        """tr H^-1, where L = 1: times sigma^2, the squared error of an attacker without a prior.

        Args:
            least: a lower end of l_n. At 0, or too near to be dimension from it, only a lower end comes out.
        """
        forms = Quadrature(self._tridiagonals, least, self._scale).inverse_forms(0.0)
        certified = least > 2 * self.slack
        low, high = self._ends(forms.first_low, forms.first_high, 1 / least if certified else math.inf, self._failure)
        values, residuals = self.deflation.values, self.deflation.residuals
        deflated_low = float(np.sum(1 / np.maximum(values + self.slack, 1e-300)))
        deflated_high = math.inf if len(values) else 0.0
        if certified:
            errors = (residuals + self.slack) ** 2 / least
            deflated_high = float(np.sum(reciprocal(values - self.slack - errors, least)))
        value = deflated_low + self._scaled(middle(forms.first_low, forms.first_high))
        return _within(value, deflated_low + low, deflated_high + high)

    def trace(self) -> Interval:
        """tr H, where L = 1; narrower where ``largest`` is known: its diagonal blocks' traces are known exactly."""
        return self._trace

    @cached_property
    def _trace(self) -> Interval:
        lows, highs = [], []
        for each, squared in zip(self._tridiagonals, self._rules.squared_norms.tolist(), strict=True):
            # z^T H z = ||z||^2 alpha_1. Of a probe that made no product it lies between 0 and ||z||^2 l_1.
            multiplied = each.num_products > 0
            lows.append(max(0.0, squared * (each.diagonal[0] - self.slack)) if multiplied else 0.0)
            highs.append(squared * (each.diagonal[0] + self.slack if multiplied else self.largest) if squared else 0.0)
        low, high = self._ends(np.array(lows), np.array(highs), self.largest, self._failure)
        values = self.deflation.values
        deflated, blur = float(values.sum()), len(values) * self.slack
        high = min(deflated + blur + high, self.total * self.largest)
        mean = float(np.mean(lows)) if lows else 0.0
        return _within(deflated + mean, max(0.0, deflated - blur) + low, high)

    def _scaled(self, forms: Array) -> float:
        """The trace of P L g(K) L P that the probes' forms [N] stand for; the spread of their lengths cancels."""
        total = float(self._rules.squared_norms.sum())
        return self.remaining_total * float(forms.sum()) / total if total > 0 else 0.0

    def _white_shares(self, probed: ShareEnds, eps: float, most: float) -> tuple[float, float]:
        """Ends of the trace of P f(H) P."""
        if not self._tridiagonals:
            return 0.0, self.remaining_total * most
        # Both say the same, and the one that isn't rounded away counts.
        squared = self._rules.squared_norms
        lows, highs = (
            np.maximum(probed.low, squared - probed.left_high),
            np.minimum(probed.high, squared - probed.left_low),
        )
        failure = self._share_failure / self._looks
        if self.deflation.trace:
            # exp(P f(H) P) isn't P exp(f(H)) P.
            return self._ends(lows, highs, most, failure)
        least, greatest = (
            self.total * end
            for end in share_ends_by_exponentials(
                self._rules, eps, self._strengths, self.total, self._exponential_failure
            )
        )
        if least == 0 or greatest == self.total:
            # Rounding, or few products, leave them nothing to say.
            low, high = self._ends(lows, highs, most, RATIO_SHARE * failure)
            return max(low, least), min(high, greatest)
        return least, greatest

    def _ends(self, lows: Array, highs: Array, most: float, failure: float) -> tuple[float, float]:
        """Ends of the trace of P L g(K) L P from the probes' forms [N], where 0 <= g <= most; see `mean_ends`."""
        if not self.remaining_total:
            return 0.0, 0.0
        everything = self.remaining_total * most
        if not len(lows):
            return 0.0, everything
        if self.white and self._rules.squared_norms.any():
            total, dimension = float(self._rules.squared_norms.sum()), self.remaining_total
            least, greatest = (float(forms.sum()) / total for forms in (lows, highs))
            low, high = mean_ends(least, greatest, dimension, len(lows), failure, most)
            return dimension * low, dimension * high
        mean_low, mean_high = float(np.mean(lows)), float(np.mean(highs))
        low, high = trace_interval(mean_low, mean_high, len(lows), most * self.norm, failure)
        return min(low, everything), min(high, everything)


def _check_positive(eps: float) -> None:
    if not eps > 0:
        raise ValueError(f"eps must be positive, found {eps}")


def _within(value: float, low: float, high: float) -> Interval:
    """An interval whose value lies inside; ends that crossed by rounding are put in order."""
    low = min(low, high)
    return Interval(min(max(value, low), high), low, high)
