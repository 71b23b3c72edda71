"""Split conformal factors: how far attacks stray from their prediction, with a coverage that needs no model.

Calibration scores s_i = log(attack RMSE / predicted RMSE), i = 1..n, sorted. With miscoverage a the interval for
a new sample's attack is predicted RMSE times

    [exp s_(floor((n+1) a/2)),  exp s_(ceil((n+1)(1 - a/2)))]

Each end is missed with probability at most a/2, because the rank of a new score among n+1 exchangeable ones is
uniform (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Lei, G'Sell, Rinaldo, Tibshirani
and Wasserman, JASA 2018, Theorem 2.2).

Holds on average over calibration sets and new samples that are exchangeable with the calibration samples: same
data source, model, release, noise, prior and attacks. It doesn't hold for each sample on its own, nor after the
model was trained further, nor for a stronger attack than those that were run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class ConformalFactors:
    """What a predicted RMSE is multiplied by; an end is None where n is too small to give it."""

    low: float | None
    high: float | None
    coverage: float
    num_samples: int


def conformal_factors(
    attacked: Sequence[float], predicted: Sequence[float], *, coverage: float = 0.9
) -> ConformalFactors:
    """Two-sided factors with the finite-sample correction, of n attacks' RMSEs and their earlier predictions.

    A sample whose prediction is 0 counts as a score of plus infinity, unless its attack is exact too: a factor of 1.

    Raises:
        ValueError: a coverage outside (0, 1), lengths that differ, or an error that is negative or not finite.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"expected a coverage between 0 and 1, found {coverage}")
    pairs = list(zip(attacked, predicted, strict=True))
    if any(not math.isfinite(value) or value < 0 for pair in pairs for value in pair):
        raise ValueError("expected errors that are finite and not negative")
    scores = np.sort([_factor(error, guess) for error, guess in pairs])
    # Ranks in exact arithmetic: (n+1) a/2 is often a whole number that floats miss.
    tail = 1 - Fraction(str(coverage))
    ahead = (len(pairs) + 1) * tail / 2
    lower, upper = math.floor(ahead), math.ceil(len(pairs) + 1 - ahead)
    low = float(scores[lower - 1]) if lower >= 1 else None
    high = float(scores[upper - 1]) if upper <= len(pairs) else None
    return ConformalFactors(
        None if low is None or math.isinf(low) else low,
        None if high is None or math.isinf(high) else high,
        coverage,
        len(pairs),
    )


def fewest_samples(coverage: float) -> int:
    """How many calibration samples both ends take: the least n with (n+1)(1 - coverage)/2 >= 1."""
    return math.ceil(2 / (1 - Fraction(str(coverage)))) - 1


def _factor(error: float, guess: float) -> float:
    if guess > 0:
        return error / guess
    return 1.0 if error == 0 else math.inf
