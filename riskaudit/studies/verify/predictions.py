"""How well predictions foretold attacks: errors, intervals, and probabilities of success.

Brier score = mean (p - outcome)^2: 0 is perfect, 0.25 what "always one half" gets (Brier 1950)
reliability: per bin of p, how often the event happened beside the mean p (Murphy and Winkler 1977)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binned_statistic

from riskaudit.studies.verify.record import ReliabilityBin

NUM_BINS = 10


@dataclass(frozen=True)
class Tightness:
    """Attack error over predicted error: 1 = foreseen exactly, above = the attack fell short of the prediction.

    The shares say how often an attack did better than 0.9 and 0.75 times the prediction.
    """

    num_samples: int
    median: float
    lower_quartile: float
    upper_quartile: float
    share_below_nine_tenths: float
    share_below_three_quarters: float


@dataclass(frozen=True)
class Containment:
    """Shares of samples: ``validity`` not below the interval, ``coverage`` inside it; None without such ends."""

    num_samples: int
    validity: float | None
    coverage: float | None


def tightness(attacked: Sequence[float], predicted: Sequence[float]) -> Tightness | None:
    """Summary of n ratios of root mean squared errors in the same units; None where no prediction is positive."""
    ratios = np.array([error / guess for error, guess in zip(attacked, predicted, strict=True) if guess > 0])
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios) == 0:
        return None
    lower, middle, upper = (float(value) for value in np.quantile(ratios, [0.25, 0.5, 0.75]))
    below = [float((ratios < limit).mean()) for limit in (0.9, 0.75)]
    return Tightness(len(ratios), middle, lower, upper, *below)


def containment(attacked: Sequence[float], low: Sequence[float | None], high: Sequence[float | None]) -> Containment:
    """How often errors are inside their sample's interval, over the samples that have the ends it takes.

    Args:
        attacked: n errors.
        low: lower end per sample, None where there is none.
        high: likewise.
    """
    above = [(error, start, end) for error, start, end in zip(attacked, low, high, strict=True) if start is not None]
    inside = [(error, start, end) for error, start, end in above if end is not None]
    return Containment(
        len(above),
        float(np.mean([error >= start for error, start, _ in above])) if above else None,
        float(np.mean([start <= error <= end for error, start, end in inside])) if inside else None,
    )


def brier_score(probabilities: Sequence[float], outcomes: Sequence[bool]) -> float | None:
    """Mean squared distance of n probabilities in [0, 1] from what happened; None for none."""
    if len(probabilities) == 0:
        return None
    happened = np.asarray(outcomes, dtype=np.float64)
    return float(np.mean((np.asarray(probabilities, dtype=np.float64) - happened) ** 2))


def reliability_bins(
    probabilities: Sequence[float], outcomes: Sequence[bool], *, num_bins: int = NUM_BINS
) -> list[ReliabilityBin]:
    """Bins of equal width over [0, 1] that hold at least one of n samples; the last one includes 1.

    Raises:
        ValueError: the lengths differ, or a probability isn't in [0, 1].
    """
    predicted, happened = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=bool)
    if predicted.shape != happened.shape:
        raise ValueError(f"expected as many outcomes as probabilities, found {len(happened)} and {len(predicted)}")
    if not ((predicted >= 0) & (predicted <= 1)).all():
        raise ValueError("expected probabilities between 0 and 1")
    counts, edges = np.histogram(predicted, num_bins, (0, 1))
    means = binned_statistic(predicted, [predicted, happened], bins=num_bins, range=(0, 1)).statistic
    return [
        ReliabilityBin(
            low=float(low), high=float(high), num_samples=int(count), mean_predicted=float(mean), observed=float(share)
        )
        for low, high, count, mean, share in zip(edges, edges[1:], counts, *means, strict=False)
        if count
    ]
