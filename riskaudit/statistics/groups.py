"""Groups of samples compared: summary with a bootstrap interval, and a test for any difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from riskaudit.results import ClassTest, GroupStatistic

# Below this many samples a percentile bootstrap covers far less than it claims, and the chi-squared
# approximation of the Kruskal-Wallis statistic is poor.
FEWEST_SAMPLES = 5
NUM_RESAMPLES = 2000
_MOST_DRAWN = 1_000_000


def group_statistic(values: Sequence[float], *, confidence: float, seed: int) -> GroupStatistic:
    """Mean, min, max, std (n - 1) and percentile bootstrap interval of the mean (Efron 1979).

    With fewer than `FEWEST_SAMPLES` values there is no interval, and the note says so; with one there
    is no std either.
    """
    data = np.asarray(values, dtype=np.float64)
    enough = len(data) >= FEWEST_SAMPLES
    low = high = None
    if enough:
        rng = np.random.default_rng(seed)
        # A few resamples at a time: all at once would take gigabytes where there are many samples.
        rows = max(1, _MOST_DRAWN // len(data))
        blocks = [min(rows, NUM_RESAMPLES - first) for first in range(0, NUM_RESAMPLES, rows)]
        means = np.concatenate(
            [data[rng.integers(len(data), size=(block, len(data)))].mean(axis=1) for block in blocks]
        )
        low, high = (float(end) for end in np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2]))
    return GroupStatistic(
        mean=float(data.mean()),
        min=float(data.min()),
        max=float(data.max()),
        std=float(data.std(ddof=1)) if len(data) > 1 else None,
        low=low,
        high=high,
        confidence=confidence if enough else None,
        num_samples=len(data),
        note=None if enough else f"too few samples for an interval: {len(data)}, at least {FEWEST_SAMPLES} are needed",
    )


def kruskal_wallis(
    groups: Mapping[int, Sequence[float]] | Mapping[str, Sequence[float]], *, noun: str = "classes"
) -> ClassTest:
    """Test that all groups share one distribution (Kruskal and Wallis 1952), over groups large enough.

    "not_applicable" with a note where fewer than two groups have `FEWEST_SAMPLES` values. ``noun`` is what notes
    call groups.
    """
    tested = {name: values for name, values in groups.items() if len(values) >= FEWEST_SAMPLES}
    left_out = len(groups) - len(tested)
    if len(tested) < 2:
        return ClassTest(
            status="not_applicable",
            note=f"too few samples: {len(tested)} of {len(groups)} {noun} have at least {FEWEST_SAMPLES}, "
            f"two such {noun} are needed",
        )
    pooled = np.concatenate([np.asarray(values) for values in tested.values()])
    if np.ptp(pooled) == 0:
        return ClassTest(statistic=0.0, p_value=1.0, status="exact", note="all values are equal")
    outcome = stats.kruskal(*tested.values())
    note = f"{left_out} {noun} with fewer than {FEWEST_SAMPLES} samples left out" if left_out else None
    return ClassTest(statistic=float(outcome.statistic), p_value=float(outcome.pvalue), status="exact", note=note)
