"""The distribution of Q = sum_i s_i X_i^2 with independent standard normal X_i, and bounds that need only its mean.

Q has the Laplace transform prod_i (1 + 2 s_i p)^(-1/2), whose singularities all lie on the negative real axis, so

    P(Q <= x) = 1/(2 pi i) int exp(p x) prod_i (1 + 2 s_i p)^(-1/2) / p dp

over any contour that passes right of 0 and may bend to the left (Rice, SIAM J. Sci. Stat. Comput. 1, 1980, on
Imhof's integral). Here it is the hyperbola p_0 + i y - m (sqrt(w^2 + y^2) - w) through the saddle point p_0 > 0 of
the integrand, whose width there is w. [derived] With 1 / p_0 = x - sum_i s_i / (1 + 2 s_i p_0) and any slope m <= 1
every factor's magnitude on it, taken with its share of exp(p x), is at most that at p_0, and exp(Re(p - p_0) / p_0)
is left over: the integrand falls at least exponentially, the trapezoidal rule converges faster than any power, and
lower tails come out with small relative error, whatever the dimension and the spread of s. The density is the same
integral without 1 / p, from the same points. Not for negative s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, root_scalar
from scipy.special import gammaincinv

Weights = npt.NDArray[np.float64]
Points = npt.NDArray[np.floating[Any]]
Complex = npt.NDArray[np.complex128]

# The sum is refined, from so many points per width of the peak, until two in a row agree within this.
ABSOLUTE_ERROR = 1e-10
FIRST_POINTS, MAX_DOUBLINGS = 2, 10
# Parts of this size don't count, and none beyond so many widths from the saddle point.
NEGLIGIBLE = 1e-14
FURTHEST = 1e6
# At slope 1 a normal density would not fall at all, at 0 a single chi-square falls too slowly.
SLOPE = 0.5
# Quantiles are right to this, relative; steps of Newton's method at most.
QUANTILE_ERROR, NEWTON_STEPS = 1e-7, 8
# Complex numbers worked on at once.
BLOCK_ENTRIES = 2**20


class _Law(NamedTuple):
    """Of Q at one x: P(Q <= x), and x times its density, 0 where that is negligible."""

    probability: float
    slope: float


def probability_below(weights: Weights, x: float) -> float:
    """P(sum_i s_i X_i^2 <= x) for weights s [d] >= 0, within about 1e-10."""
    return _law(np.asarray(weights, dtype=np.float64), x).probability


def _law(weights: Weights, x: float) -> _Law:
    scale = float(weights.max(initial=0.0))
    if not x > 0:
        return _Law(1.0 if scale == 0 and x == 0 else 0.0, 0.0)
    if scale == 0 or math.isinf(x):
        return _Law(1.0, 0.0)
    if x < NEGLIGIBLE**2 * scale:
        # P(s X^2 <= x) is below sqrt(x / s).
        return _Law(0.0, 0.0)
    # Far smaller weights together shift Q by less than the error allowed.
    weights, x = weights[weights > 1e-300 * scale] / scale, x / scale
    if _tail(float(weights.sum()), 1.0, x) < NEGLIGIBLE and x > float(weights.sum()):
        return _Law(1.0, 0.0)
    saddle = _saddle_point(weights, x)
    around = weights / (1 + 2 * weights * saddle)
    width = 1 / math.sqrt(2 * float(np.sum(around**2)) + 1 / saddle**2)
    peak = saddle * x - 0.5 * float(np.sum(np.log1p(2 * weights * saddle))) - math.log(saddle)
    if peak < -700:
        return _Law(0.0, 0.0)

    def integrand(steps: Points) -> Complex:
        """The integrand times dp/dy / i, relative to its peak, at y = width * steps, and that times p x, [2, N]."""
        root = np.sqrt(1 + steps**2)
        p = saddle + width * (1j * steps - SLOPE * (root - 1))
        logarithm = p * x - np.log(p) - peak
        block = max(1, BLOCK_ENTRIES // len(steps))
        for first in range(0, len(weights), block):
            logarithm -= 0.5 * np.log(1 + 2 * np.multiply.outer(p, weights[first : first + block])).sum(-1)
        value = np.exp(logarithm) * (1 + 1j * SLOPE * steps / root)
        return np.stack([value, value * p * x])

    # 1/(2 pi i) of the whole contour is 1/pi of the real part of its upper half.
    probability, slope = _half_line(integrand) * width / math.pi * math.exp(peak)
    return _Law(min(1.0, max(0.0, probability)), max(0.0, slope))


def _saddle_point(weights: Weights, x: float) -> float:
    """The p > 0 at which p x - 1/2 sum log(1 + 2 s_i p) - log p is least; it is convex there."""

    def slope(log_p: float) -> float:
        p = math.exp(log_p)
        return p * x - float(np.sum(weights * p / (1 + 2 * weights * p))) - 1

    # The slope times p lies between p x - d/2 - 1 and p x - 1.
    low, high = math.log(1 / x), math.log((len(weights) / 2 + 1) / x)
    return math.exp(brentq(slope, low - 1e-3, high + 1e-3, xtol=1e-6))


def _half_line(integrand: Callable[[Points], Complex]) -> Weights:
    """The real part of the integrals [2] from 0 to infinity of what falls at least exponentially, by trapezoids.

    Refined until the first of them, the one that must be right, no longer changes.
    """
    end = 4.0
    while end < FURTHEST and float(np.abs(integrand(np.linspace(end, 1.3 * end, 4))[0]).max()) > NEGLIGIBLE:
        end *= 1.3
    count = math.ceil(FIRST_POINTS * end)
    step = end / count
    total = 0.5 * step * integrand(np.zeros(1))[:, 0].real
    total += step * integrand(step * np.arange(1, count + 1)).real.sum(1)
    for _ in range(MAX_DOUBLINGS):
        finer = 0.5 * total + 0.5 * step * integrand(step * (np.arange(count) + 0.5)).real.sum(1)
        if abs(finer[0] - total[0]) <= ABSOLUTE_ERROR:
            return np.asarray(finer)
        total, count, step = finer, 2 * count, step / 2
    return total


def quantile(weights: Weights, probability: float) -> float:
    """The x with P(sum_i s_i X_i^2 <= x) = ``probability``, in (0, 1); 0 where all s are."""
    weights = np.asarray(weights, dtype=np.float64)
    if not weights.max(initial=0.0) > 0:
        return 0.0

    def excess_and_slope(log_x: float) -> tuple[float, float]:
        law = _law(weights, math.exp(log_x))
        above = law.probability - probability
        # Far out the slope is none; no step goes further than a factor of e.
        return above, max(law.slope, abs(above))

    def excess(log_x: float) -> float:
        return excess_and_slope(log_x)[0]

    start = math.log(max(satterthwaite_quantile(weights, probability), 1e-6 * float(weights.sum())))
    newton = root_scalar(excess_and_slope, fprime=True, x0=start, xtol=QUANTILE_ERROR, maxiter=NEWTON_STEPS)
    if newton.converged:
        return math.exp(newton.root)
    low = high = start
    step = 0.02
    while excess(low) > 0:
        low, step = low - step, 2 * step
    while excess(high) < 0:
        high, step = high + step, 2 * step
    return math.exp(brentq(excess, low, high, xtol=QUANTILE_ERROR)) if high > low else math.exp(low)


def satterthwaite_quantile(weights: Weights, probability: float) -> float:
    """The quantile of the gamma distribution with Q's mean and variance: near Q's, and quick."""
    scaled = weights / weights.max()
    mean, square = float(scaled.sum()), float(np.sum(scaled**2))
    return float(gammaincinv(mean * mean / (2 * square), probability)) * 2 * square / mean * float(weights.max())


def most_below(mean: float, norm: float, x: float) -> float:
    """The most that P(Q <= x) can be where sum_i s_i >= ``mean`` and every s_i <= ``norm``.

    Chernoff's bound: log E exp(-t Q) = -1/2 sum_i log(1 + 2 t s_i) is convex in s, so it is largest where
    mean / norm of them equal norm (cf. `riskaudit.linalg.krylov.traces`). It falls as the mean grows, so a lower end
    of the mean gives an upper end of the probability.
    """
    return _tail(mean, norm, x) if x < mean else 1.0


def least_below(mean: float, norm: float, x: float) -> float:
    """The least that P(Q <= x) can be where sum_i s_i <= ``mean``, likewise for the other tail."""
    return 1 - _tail(mean, norm, x) if x > mean else 0.0


def _tail(mean: float, norm: float, x: float) -> float:
    if mean <= 0 or not norm > 0:
        return 0.0
    if x <= 0:
        return 0.0
    if not (math.isfinite(norm) and math.isfinite(x)):
        return 1.0
    return math.exp(min(0.0, -(x - mean - mean * math.log(x / mean)) / (2 * norm)))


def least_quantile(mean: float, norm: float, probability: float) -> float:
    """A lower end of Q's quantile where sum_i s_i >= ``mean``: `most_below` is ``probability`` there."""
    return mean * _tail_ratio(mean, norm, probability, upper=False)


def most_quantile(mean: float, norm: float, probability: float) -> float:
    """An upper end of Q's quantile where sum_i s_i <= ``mean``; infinite where that is."""
    return mean * _tail_ratio(mean, norm, 1 - probability, upper=True) if math.isfinite(mean) else math.inf


def _tail_ratio(mean: float, norm: float, failure: float, *, upper: bool) -> float:
    """The u = x / mean on one side of 1 at which u - 1 - ln u = 2 norm ln(1 / failure) / mean."""
    if mean <= 0:
        return 0.0
    reach = 2 * norm * math.log(1 / failure) / mean
    if not math.isfinite(reach):
        return math.inf if upper else 0.0

    def excess(log_u: float) -> float:
        return math.expm1(log_u) - log_u - reach

    if upper:
        return math.exp(brentq(excess, 0.0, math.log(2 + 2 * reach + math.sqrt(2 * reach)) + 1, xtol=1e-12))
    return math.exp(brentq(excess, -reach - 1.5, 0.0, xtol=1e-12)) if reach < 700 else 0.0
