"""Whether predicted probabilities mean what they say.

Brier score = mean (p - outcome)^2: 0 is perfect, 0.25 what "always one half" gets (Brier 1950)
reliability: per bin of p, how often the event happened beside the mean p (Murphy and Winkler 1977)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from riskaudit.results import ReliabilityBin

NUM_BINS = 10


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
    edges = np.linspace(0, 1, num_bins + 1)
    place = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, num_bins - 1)
    return [
        ReliabilityBin(
            low=float(edges[bin_]),
            high=float(edges[bin_ + 1]),
            num_samples=int(inside.sum()),
            mean_predicted=float(predicted[inside].mean()),
            observed=float(happened[inside].mean()),
        )
        for bin_ in range(num_bins)
        if (inside := place == bin_).any()
    ]
