"""How unevenly a non-negative quantity is spread over samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def gini(values: Sequence[float]) -> float | None:
    """Gini coefficient: mean absolute difference of two samples over twice the mean, 0 (equal) to 1.

    None where the values sum to zero or one is negative.
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    total = data.sum()
    if len(data) == 0 or total == 0 or data[0] < 0:
        return None
    ranks = np.arange(1, len(data) + 1)
    return float(max(0.0, (2 * ranks - len(data) - 1) @ data / (len(data) * total)))


def max_min_ratio(values: Sequence[float]) -> float | None:
    """Largest over smallest value; None where the smallest isn't positive."""
    if not values or min(values) <= 0:
        return None
    ratio = max(values) / min(values)
    return float(ratio) if np.isfinite(ratio) else None


def lorenz_curve(values: Sequence[float], *, most: int = 101) -> list[tuple[float, float]]:
    """Points (share of samples, share of the sum that those with the least of it hold), from (0, 0) to (1, 1).

    Lorenz 1905. At most ``most`` points, which lie on the curve; none where `gini` has no value.
    """
    if gini(values) is None:
        return []
    held = np.concatenate([[0.0], np.cumsum(np.sort(np.asarray(values, dtype=np.float64)))])
    count = len(values)
    positions = np.unique(np.linspace(0, count, min(most, count + 1)).round().astype(int))
    return [(float(position / count), float(held[position] / held[-1])) for position in positions]


def top_share(values: Sequence[float], share: float, *, largest: bool = True) -> float | None:
    """What the ``share`` of samples with the largest (or smallest) values holds of the sum, along the Lorenz curve."""
    curve = lorenz_curve(values, most=len(values) + 1)
    if not curve:
        return None
    samples, held = zip(*curve, strict=True)
    held_share = 1 - np.interp(1 - share, samples, held) if largest else np.interp(share, samples, held)
    return float(min(1.0, max(0.0, held_share)))
