"""How an error grows with 1 / l: log-log slope and rank correlation, with intervals that resample whole samples.

Pairs of one sample share its network state, so the bootstrap draws samples with all their pairs (cluster bootstrap,
Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Percentile intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

NUM_RESAMPLES = 2000
FEWEST_SAMPLES = 4


@dataclass(frozen=True)
class Scaling:
    """Slope of log y over log x and Spearman's rho of all pairs; None where there is none, ``note`` says why."""

    num_pairs: int
    num_samples: int
    decades: float | None = None
    slope: float | None = None
    slope_low: float | None = None
    slope_high: float | None = None
    spearman: float | None = None
    spearman_low: float | None = None
    spearman_high: float | None = None
    note: str | None = None


def scaling(pairs: Mapping[str, Sequence[tuple[float, float]]], *, confidence: float = 0.95, seed: int = 0) -> Scaling:
    """How y grows with x, given positive pairs (x, y) per sample."""
    groups = [
        np.log10(np.asarray(sample_pairs, dtype=np.float64)) for sample_pairs in pairs.values() if len(sample_pairs)
    ]
    count, samples = sum(map(len, groups)), len(groups)
    if count < 3:
        return Scaling(count, samples, note=f"too few pairs: {count}, at least 3 are needed")
    whole = np.concatenate(groups)
    decades = float(np.ptp(whole[:, 0]))
    if decades == 0 or np.ptp(whole[:, 1]) == 0:
        return Scaling(count, samples, decades, note="all values are equal")
    slope, rho = _slope(whole), _spearman(whole)
    if samples < FEWEST_SAMPLES:
        note = f"too few samples for an interval: {samples}, at least {FEWEST_SAMPLES} are needed"
        return Scaling(count, samples, decades, slope, spearman=rho, note=note)
    draws = np.random.default_rng(seed).integers(samples, size=(NUM_RESAMPLES, samples))
    resampled = [
        (_slope(drawn), _spearman(drawn)) for drawn in (np.concatenate([groups[k] for k in row]) for row in draws)
    ]
    ends = np.nanquantile(np.array(resampled), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Scaling(
        count, samples, decades, slope, float(ends[0, 0]), float(ends[1, 0]), rho, float(ends[0, 1]), float(ends[1, 1])
    )


def _slope(pairs: NDArray[np.float64]) -> float:
    x, y = (pairs - pairs.mean(0)).T
    return float(x @ y / (x @ x)) if x @ x > 0 else float("nan")


def _spearman(pairs: NDArray[np.float64]) -> float:
    x, y = (rankdata(side) - (len(pairs) + 1) / 2 for side in pairs.T)
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip(x @ y / scale, -1, 1)) if scale > 0 else float("nan")
