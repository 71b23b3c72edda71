"""Ends of the mean eigenvalue a = tr A / n of A, 0 <= A <= 1, from forms w^T exp(c A) w at directions w of probes.

[derived] For w uniform on the unit sphere and M > 0, E (w^T M w)^(-n/2) = det(M)^(-1/2): the Gaussian integral of
exp(-z^T M z / 2) in polar coordinates. With M = exp(2 s A), s of either sign, det(M)^(-1/2) = exp(-s tr A), so that

    Z_N(s) = prod_k (w_k^T exp(2 s A) w_k)^(-n/2) exp(s n a),    k = 1 ... N,

has the mean 1 for independent directions, and so has a mixture sum_j p_j Z_N(s_j) over fixed s_j with weights p_j. Both
are martingales in N, hence P(sum_j p_j Z_N(s_j) >= 1 / q for any N) <= q (Ville, Etude critique de la notion de
collectif, 1939): intervals hold at all numbers of probes at once, whoever decides by them whether to go on. An upper
end of a form makes Z smaller, which errs outward.

For one s it says a >= -log(w^T exp(-2 s A) w) / (2 s) - ln(1/q) / (s n) (s > 0), whose best s leaves about
2 sqrt(ln(1/q) v / (N n)) between a and the probes, v the variance of A's eigenvalues: what Chernoff's bound would
give if v were known beforehand, with nothing said of v (cf. `ratios`, which knows the range of the eigenvalues alone).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from riskaudit.linalg.krylov.quadrature import Quadrature
from riskaudit.linalg.krylov.tridiagonal import Array

# Strengths lie on either side of the one for the width aimed at, each by this factor from the next, and weigh by so
# much less. Measured on lenet, noise 0.001 to 0.1, 1 to 3 probes: factors of 1.4 to 2 leave widths alike within 4 %.
RATIO, DECAY, BELOW, ABOVE = 1.5, 0.6, 8, 6
# The part of a failure left to ratios, which say something where rounding leaves exponentials nothing.
RATIO_SHARE = 0.1
# Newton's method on a convex function needs far fewer steps.
NEWTON_STEPS, NEWTON_TOLERANCE = 100, 1e-12


@final
@dataclass(frozen=True)
class Strengths:
    """The s_j with the weights of their mixture.

    Attributes:
        values: s_j > 0, [S].
        weights: p_j, [S], which add up to 1.
    """

    values: Array
    weights: Array

    @classmethod
    def for_width(cls, dimension: float, failure: float, half_width: float) -> Strengths:
        """Those around the best s for an end that is to lie so far from a single probe.

        Args:
            dimension: n.
            failure: of both ends together, 2 q.
            half_width: in (0, 1); any other width comes out nearly as narrow as it can.
        """
        steps = np.arange(-BELOW, ABOVE + 1, dtype=np.float64)
        values = 2 * math.log(2 / failure) / (dimension * half_width) * RATIO**steps
        weights = DECAY ** np.abs(steps)
        return cls(values, weights / weights.sum())


def share_ends_by_exponentials(
    rules: Quadrature, eps: float, strengths: Strengths, dimension: float, failure: float
) -> tuple[float, float]:
    """Ends of tr H (H + eps)^-1 / n from the rules of one or more probes.

    Args:
        rules: of iterations on H.
        eps: > 0.
        strengths: s_j.
        dimension: n.
        failure: probability that either end misses, half for each.
    """
    rising, falling = rules.exponentials(eps, strengths.values)
    low = least_mean(rising, strengths, dimension, failure / 2)
    return low, max(low, 1 - least_mean(falling, strengths, dimension, failure / 2))


def least_mean(logs: Array, strengths: Strengths, dimension: float, failure: float) -> float:
    """A lower end of a, at least 0, which misses with probability q; 1 - a has one as well.

    Args:
        logs: upper ends of log w_k^T exp(-2 s_j A) w_k of every probe, [N, S].
        strengths: s_j.
        dimension: n.
        failure: q.
    """
    if not len(logs):
        return 0.0
    slopes = dimension * len(logs) * strengths.values
    heights = np.log(strengths.weights) - dimension / 2 * logs.sum(axis=0) + math.log(failure)
    # log sum_j exp(height_j - slope_j mean) is convex and falls: steps from its left, where the roots of single terms
    # lie, never go beyond its root.
    mean = max(0.0, float((heights / slopes).max(initial=0.0)))
    for _ in range(NEWTON_STEPS):
        terms = heights - slopes * mean
        top = float(terms.max(initial=-math.inf))
        parts = np.exp(terms - top)
        excess = top + math.log(float(parts.sum()))
        if not excess > 0:
            break
        step = excess * float(parts.sum()) / float(parts @ slopes)
        mean += step
        if step <= NEWTON_TOLERANCE * mean:
            break
    return min(mean, 1.0)
