"""Medians of several treatments of the same samples, each repeated with several seeds, compared with the best.

The bootstrap draws samples, the same ones for every treatment (they are paired), and seeds, for each treatment
anew (they are not): the two ways in which another experiment would have come out differently (Efron 1979). With few
seeds it sees little of how seeds differ, so its intervals are rather too narrow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from riskaudit.statistics.groups import FEWEST_SAMPLES, NUM_RESAMPLES

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ComparedMedian:
    """One treatment's median, and by how much it is below the best one's; ends are None with too few samples."""

    median: float
    low: float | None
    high: float | None
    difference: float
    difference_low: float | None
    difference_high: float | None


def compare_medians(
    treatments: Mapping[str, Values],
    *,
    aside: Collection[str] = (),
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, ComparedMedian]:
    """Every treatment with a value, the one with the largest median first; ties keep their order.

    Args:
        treatments: [seeds, N] each, seeds of its own number; NaN where a value is missing.
        aside: treatments that can't be the best one, with which all are compared.
        confidence: of the percentile intervals.
        seed: of the resamples.
        num_resamples: how many.
    """
    measured = {name: values for name, values in treatments.items() if np.isfinite(values).any()}
    medians = {name: float(np.nanmedian(values)) for name, values in measured.items()}
    order = sorted(medians, key=lambda name: -medians[name])
    if not order:
        return {}
    best = next((name for name in order if name not in aside), order[0])
    drawn = _resampled(measured, seed, num_resamples)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    compared = {}
    for name in order:
        ends = _ends(drawn[name], tails) if drawn else (None, None)
        apart = _ends(drawn[best] - drawn[name], tails) if drawn else (None, None)
        compared[name] = ComparedMedian(medians[name], *ends, medians[best] - medians[name], *apart)
    return compared


def _resampled(measured: Mapping[str, Values], seed: int, count: int) -> dict[str, Values]:
    """Medians of resamples, [count] per treatment; nothing where there are too few samples."""
    num_samples = next(iter(measured.values())).shape[1]
    if num_samples < FEWEST_SAMPLES:
        return {}
    rng = np.random.default_rng(seed)
    samples = rng.integers(num_samples, size=(count, num_samples))
    drawn = {}
    for name, values in measured.items():
        seeds = rng.integers(len(values), size=(count, len(values)))
        medians = np.empty(count)
        for number in range(count):
            part = values[np.ix_(seeds[number], samples[number])]
            part = part[np.isfinite(part)]
            medians[number] = np.median(part) if len(part) else np.nan
        drawn[name] = medians
    return drawn


def _ends(values: Values, tails: list[float]) -> tuple[float | None, float | None]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None, None
    low, high = np.quantile(finite, tails)
    return float(low), float(high)
