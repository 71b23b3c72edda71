"""Ends of the spectrum that hold with a chosen confidence, from one Lanczos iteration.

[derived] Let z be uniform on the sphere, and pi_0 = 1, pi_1, ... the orthonormal polynomials of the
measure sum_i (z . u_i)^2 at l_i, which T's three-term recurrence gives up to pi_k. For a polynomial
p = sum_j a_j pi_j, sum_j a_j^2 = ||p(H) z||^2 >= (z . u_1)^2 p(l_1)^2. The best p gives

    (z . u_1)^2 K(l_1) <= 1,    K(x) = sum_{j <= k} pi_j(x)^2,

1/K being the Christoffel function. (z . u_1)^2 has the distribution Beta(1/2, (n - 1)/2), whose
q-quantile delta it exceeds with probability 1 - q: then K(l_1) <= 1/delta. K increases to the right of
the largest Ritz value, so l_1 is at most the x where K(x) = 1/delta. Likewise for l_n on the left.

The bound of Kuczynski and Wozniakowski ("Estimating the largest eigenvalue by the power and Lanczos
algorithms with a random start", SIAM J. Matrix Anal. Appl. 13, 1992, theorem 4.2) is the one for the
worst spectrum; this one knows what T says of the spectrum at hand.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv, gammaln

from riskaudit.linalg.krylov.tridiagonal import Array, Tridiagonal

# Below this probability the quantile's own series is exact to every digit, and can't underflow.
TINY_FAILURE = 1e-8
# Relative error at which root finding stops; the root is moved outward by twice as much.
ROOT_TOLERANCE = 1e-9


def upper_end(tridiagonal: Tridiagonal, failure: float) -> float:
    """An upper end of l_1 from an iteration that started in a direction uniform on the sphere.

    Args:
        tridiagonal: T of a symmetric positive semidefinite H.
        failure: probability that the end lies below l_1 all the same; in (0, 1).

    Returns:
        l_1 up to rounding where the space is invariant; infinite where there was no product.
    """
    if not tridiagonal.num_products:
        return math.inf
    offset = _offset(tridiagonal.diagonal, tridiagonal, tridiagonal.largest, failure, math.inf)
    return tridiagonal.largest + offset + tridiagonal.slack()


def is_at_most(tridiagonal: Tridiagonal, failure: float, most: float) -> bool:
    """Whether `upper_end` is at most ``most``: K is looked at in one place, instead of its root being searched for.

    Args:
        tridiagonal: T of a symmetric positive semidefinite H.
        failure: as there.
        most: finite.
    """
    if not tridiagonal.num_products:
        return False
    slack = tridiagonal.slack()
    offset = most - tridiagonal.largest - slack
    if tridiagonal.exhausted:
        return offset >= 0
    # Nearer than rounding the recurrence says nothing, and the end is no nearer either.
    if offset < slack:
        return False
    # The root is moved outward there.
    nearer = tridiagonal.largest + (1 - 3 * ROOT_TOLERANCE) * offset
    log_delta = log_overlap_quantile(tridiagonal.dimension, failure)
    return _log_kernel(nearer, tridiagonal.diagonal, tridiagonal.off_diagonal) + log_delta >= 0


def lower_end(tridiagonal: Tridiagonal, failure: float) -> float:
    """A lower end of l_n, likewise; 0 where nothing is certified.

    Args:
        tridiagonal: T of a symmetric positive semidefinite H.
        failure: probability that the end lies above l_n; in (0, 1).
    """
    if not tridiagonal.num_products:
        return 0.0
    smallest = float(tridiagonal.ritz().values[0]) - tridiagonal.slack()
    if smallest <= 0:
        return 0.0
    # -H has the orthonormal polynomials pi_j(-x), so its T has -alpha, and the same beta up to sign.
    return max(0.0, smallest - _offset(-tridiagonal.diagonal, tridiagonal, -smallest, failure, smallest))


def _offset(diagonal: Array, tridiagonal: Tridiagonal, end: float, failure: float, most: float) -> float:
    """How far to the right of ``end``, the largest Ritz value, an eigenvalue may lie; at most ``most``."""
    if tridiagonal.exhausted:
        return 0.0
    log_delta = log_overlap_quantile(tridiagonal.dimension, failure)
    off_diagonal = tridiagonal.off_diagonal

    def excess(offset: float) -> float:
        return _log_kernel(end + offset, diagonal, off_diagonal) + log_delta

    # Nearer than rounding the recurrence says nothing.
    nearest = tridiagonal.slack()
    if excess(nearest) >= 0:
        return nearest
    if math.isfinite(most) and excess(most) <= 0:
        return most
    # K >= pi_k^2 = prod (x - theta_i)^2 / prod beta_j^2 >= (x - theta_max)^(2k) / prod beta_j^2.
    furthest = math.exp((float(np.log(off_diagonal).sum()) - log_delta / 2) / len(off_diagonal))
    furthest = min(most, max(2 * nearest, furthest))
    while excess(furthest) < 0:
        furthest *= 2
    # The root may be many orders of magnitude below the furthest point.
    near, far = math.log(max(nearest, 1e-30 * furthest)), math.log(furthest)
    root: float = brentq(lambda logarithm: excess(math.exp(logarithm)), near, far, xtol=ROOT_TOLERANCE, rtol=1e-14)
    return min(most, math.exp(root + 2 * ROOT_TOLERANCE))


def _log_kernel(x: float, diagonal: Array, off_diagonal: Array) -> float:
    """log K(x) for x right of all Ritz values, where every pi_j is positive.

    From the ratios pi_j / pi_{j-1}, since the polynomials themselves overflow.
    """
    log_square, log_squares, previous = 0.0, [0.0], 0.0
    for alpha, beta in zip(diagonal.tolist(), off_diagonal.tolist(), strict=True):
        ratio = (x - alpha - previous) / beta
        if ratio <= 0:
            # Only by rounding, beside a Ritz value. Fewer terms make K smaller, which errs outward.
            break
        log_square += 2 * math.log(ratio)
        log_squares.append(log_square)
        previous = beta / ratio
    top = max(log_squares)
    return top + math.log(sum(math.exp(each - top) for each in log_squares))


@lru_cache(maxsize=256)
def log_overlap_quantile(dimension: int, failure: float) -> float:
    """Log of the ``failure``-quantile of (z . u)^2 for a fixed u and z uniform on the sphere in R^n.

    For tiny probabilities from |z . u|'s density, which is largest at 0: P(|z . u| <= s) <= 2 c s with
    c = Gamma(n/2) / (sqrt(pi) Gamma((n - 1)/2)).
    """
    if dimension == 1:
        return 0.0
    if dimension == 2:
        # The angle is uniform.
        return 2 * math.log(math.sin(math.pi * failure / 2))
    if failure >= TINY_FAILURE:
        return math.log(float(betaincinv(0.5, (dimension - 1) / 2, failure)))
    log_density = float(gammaln(dimension / 2) - gammaln((dimension - 1) / 2)) - math.log(math.pi) / 2
    return 2 * (math.log(failure) - math.log(2) - log_density)
