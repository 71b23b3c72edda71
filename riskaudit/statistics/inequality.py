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
