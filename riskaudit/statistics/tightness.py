"""How near attacks come to what was predicted, and how often they stay inside a predicted interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
    ratios = np.array([one / other for one, other in zip(attacked, predicted, strict=True) if other > 0])
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
