"""Ends of the mean eigenvalue of A, 0 <= A <= c, from the ratio of forms z^T A z to lengths z^T z of Gaussian probes.

The lengths of probes spread too, so that the ratio t = sum_k z_k^T A z_k / sum_k z_k^T z_k over N probes is nearer to
the mean eigenvalue a = tr A / n than the mean of the forms is to the trace.

[derived; cf. Bennett, J. Amer. Statist. Assoc. 57 (1962)] t >= u where sum_k z_k^T (A - u) z_k >= 0, so by Markov's
inequality P(t >= u) <= prod_i (1 - 2 s (a_i - u))^(-N/2) for every s > 0. The factor's logarithm is convex in a_i: of
all spectra in [0, c] of a mean a it is largest where a_i is c or 0, and for the best s

    P(t beyond u, on either side of a) <= exp(-(N n / 2) KL(a / c, u / c)),
    KL(p, q) = p ln(p / q) + (1 - p) ln((1 - p) / (1 - q)).

No eigenvalue is larger than the trace either, so that c = n a holds too. These sets of u are tails on one side of a,
one within the other, so that the smaller of them counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

# Halvings of the interval that an end is sought in; what is left of it is added outward.
HALVINGS = 60


def mean_ends(
    low: float, high: float, dimension: float, num_probes: int, failure: float, most: float = 1.0
) -> tuple[float, float]:
    """Ends of a.

    Args:
        low: a lower end of t.
        high: an upper end of it, which may be infinite.
        dimension: n, at least 1.
        num_probes: N.
        failure: probability that a lies outside, half for each side; in (0, 1).
        most: c, or infinity.
    """
    if not num_probes:
        return 0.0, most
    reach = 2 * math.log(2 / failure) / (num_probes * dimension)
    # c = n a: the ratio is n a times what lies between these.
    least, greatest = _ratio_ends(1 / dimension, reach)
    lower, upper = low / (dimension * greatest), high / (dimension * least) if least > 0 else math.inf
    if 0 < most < math.inf:
        lower = max(lower, most * lowest_mean(min(1.0, low / most), reach))
        upper = min(upper, most * highest_mean(min(1.0, high / most), reach))
    return lower, max(lower, min(upper, most))


# The same for all forms of one sample's probes.
@lru_cache(maxsize=256)
def _ratio_ends(share: float, reach: float) -> tuple[float, float]:
    """Least and greatest ratio that the mean ``share`` doesn't refute: KL(share, ratio) <= reach."""
    least = _outermost(lambda ratio: _divergence(share, ratio) > reach, 0.0, share)
    return least, _outermost(lambda ratio: _divergence(share, ratio) > reach, 1.0, share) if share < 1 else 1.0


def lowest_mean(ratio: float, reach: float) -> float:
    """The least mean that a ratio in [0, 1] doesn't refute: KL(mean, ratio) <= reach."""
    return _outermost(lambda mean: _divergence(mean, ratio) > reach, 0.0, ratio)


def highest_mean(ratio: float, reach: float) -> float:
    """The greatest, likewise."""
    return _outermost(lambda mean: _divergence(mean, ratio) > reach, 1.0, ratio)


def _outermost(refuted: Callable[[float], bool], outer: float, inner: float) -> float:
    """Where numbers from ``inner``, which isn't refuted, towards ``outer`` begin to be, erring outward."""
    if outer == inner:
        return inner
    for _ in range(HALVINGS):
        middle = (outer + inner) / 2
        if refuted(middle):
            outer = middle
        else:
            inner = middle
    return outer


def _divergence(p: float, q: float) -> float:
    """KL(p, q) of two Bernoulli distributions, q a moment's rounding inside [0, 1]."""
    if p == q:
        return 0.0
    if q <= 0 or q >= 1:
        return math.inf
    divergence = p * math.log(p / q) if p > 0 else 0.0
    return divergence + ((1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0)
