"""Rank correlations with bootstrap intervals, and whether one predictor ranks better than another.

    Spearman's rho: Pearson correlation of mid-ranks
    Kendall's tau-b = (concordant - discordant) / sqrt((pairs - ties in x) (pairs - ties in y))

Intervals resample whole samples, so x and y stay paired (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapters 13 and 14): "BCa" corrects the percentile interval for bias and skewness. Resamples in which x or y
is constant have no correlation and are left out. Not valid over pooled noise levels: those differ in level, and
the level alone would correlate.

How an error grows with 1 / l: log-log slope and rank correlation. Pairs of one sample share its network state, so the
bootstrap draws samples with all their pairs (cluster bootstrap, Davison and Hinkley, Bootstrap Methods and their
Application, 1997, section 3.8). Percentile intervals.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, kendalltau, rankdata

from riskaudit.results.base import Record

Method: TypeAlias = Literal["BCa", "percentile"]
Vector: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]

FEWEST_SAMPLES = 4
NUM_RESAMPLES = 2000
# Kendall's resamples take a matrix of all pairs.
_MOST_FOR_PAIRS = 4000


class RankCorrelation(Record):
    """Both rank correlations of n pairs, from -1 to 1, with their bootstrap intervals.

    Attributes:
        num_samples: number of pairs, n.
        spearman: Spearman's rho; null where there is none.
        low: lower end of its interval; null where there is none.
        high: upper end of its interval; null where there is none.
        kendall: Kendall's tau-b; null where there is none.
        kendall_low: lower end of its interval; null where there is none.
        kendall_high: upper end of its interval; null where there is none.
        note: one sentence on why there is no correlation or no interval; null where there are both.
    """

    num_samples: int
    spearman: float | None = None
    low: float | None = None
    high: float | None = None
    kendall: float | None = None
    kendall_low: float | None = None
    kendall_high: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class RankDifference:
    """|rho(own, errors)| - |rho(other, errors)| with its interval and two-sided p-value.

    ``own`` and ``other`` are the two correlations with their signs.
    """

    num_samples: int
    own: float | None = None
    other: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    note: str | None = None


def rank_correlation(
    x: Sequence[float],
    y: Sequence[float],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    method: Method = "BCa",
    pairs: bool = True,
) -> RankCorrelation:
    """Spearman's rho and Kendall's tau-b of n pairs of finite numbers, with bootstrap intervals by the same resamples.

    No correlation where fewer than `FEWEST_SAMPLES` pairs are there or one side is constant; no interval where
    every resample gives the same value, as a perfect order does. The note says which. ``pairs`` asks for Kendall's tau,
    whose interval takes time quadratic in n.

    Raises:
        ValueError: the lengths differ, or a number isn't finite.
    """
    first, second = _paired(x, y)
    count = len(first)
    note = _why_not(first, second)
    if note is not None:
        return RankCorrelation(num_samples=count, note=note)
    sampling = (count, num_resamples, seed, confidence, method)
    rho, low, high = _interval(lambda rows: _spearman(first, second, rows), *sampling)
    note = None if low is not None else "no interval: the resamples agree or have no correlation"
    correlation = RankCorrelation(num_samples=count, spearman=rho, low=low, high=high, note=note)
    if not pairs:
        return correlation
    if count > _MOST_FOR_PAIRS:
        return correlation.model_copy(update={"kendall": float(kendalltau(first, second).statistic)})
    tau, tau_low, tau_high = _interval(_Pairs(first, second), *sampling)
    return correlation.model_copy(update={"kendall": tau, "kendall_low": tau_low, "kendall_high": tau_high})


def rank_difference(
    own: Sequence[float],
    other: Sequence[float],
    errors: Sequence[float],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> RankDifference:
    """Paired bootstrap of the difference of two absolute Spearman correlations with the same errors.

    Both predictors are resampled together, so what they share cancels. Percentile interval; the p-value is twice
    the smaller share of resamples on either side of 0, each counted with one added to numerator and denominator
    (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 4.2).
    """
    first, target = _paired(own, errors)
    second, _ = _paired(other, errors)
    count = len(target)
    note = _why_not(first, target) or _why_not(second, target)
    if note is not None:
        return RankDifference(count, note=note)
    everyone = np.arange(count)[None]
    left, right = (float(_spearman(side, target, everyone)[0]) for side in (first, second))
    difference = abs(left) - abs(right)
    drawn = _resampled(
        lambda rows: abs(_spearman(first, target, rows)) - abs(_spearman(second, target, rows)),
        count,
        num_resamples,
        seed,
    ).bootstrap_distribution
    if len(drawn) < num_resamples / 2:
        return RankDifference(count, left, right, difference, note="too many resamples have no correlation")
    below, above = (drawn <= 0).sum(), (drawn >= 0).sum()
    p_value = min(1.0, 2 * (1 + min(below, above)) / (1 + len(drawn)))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return RankDifference(count, left, right, difference, float(low), float(high), float(p_value))


def _paired(x: Sequence[float], y: Sequence[float]) -> tuple[Vector, Vector]:
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected two rows of equal length, found {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("expected finite numbers, found NaN or infinity")
    return first, second


def _why_not(x: Vector, y: Vector) -> str | None:
    if len(x) < FEWEST_SAMPLES:
        return f"too few samples: {len(x)}, at least {FEWEST_SAMPLES} are needed"
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return "all predictions are equal" if np.ptp(x) == 0 else "all errors are equal"
    return None


def _spearman(x: Vector, y: Vector, rows: Indices) -> Vector:
    """rho of each row of indices [R, m] -> [R]; NaN where a row is constant."""
    first, second = rankdata(x[rows], axis=1), rankdata(y[rows], axis=1)
    first -= first.mean(1, keepdims=True)
    second -= second.mean(1, keepdims=True)
    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: Vector = np.clip((first * second).sum(1) / scale, -1, 1)
    return rho


class _Pairs:
    """tau-b of rows of indices, from how often each sample occurs: w^T A w counts pairs of a resample."""

    def __init__(self, x: Vector, y: Vector) -> None:
        first, second = (np.sign(side[:, None] - side[None]) for side in (x, y))
        self.agreeing, self.untied = first * second, (abs(first), abs(second))

    def __call__(self, rows: Indices) -> Vector:
        """Rows [R, m] -> [R]; NaN where one side is constant."""
        size = len(self.agreeing)
        shifted = rows + size * np.arange(len(rows))[:, None]
        weights = np.bincount(shifted.ravel(), minlength=size * len(rows)).reshape(len(rows), size).astype(np.float64)
        agreeing, *untied = (((weights @ matrix) * weights).sum(1) for matrix in (self.agreeing, *self.untied))
        with np.errstate(invalid="ignore", divide="ignore"):
            tau: Vector = np.clip(agreeing / np.sqrt(untied[0] * untied[1]), -1, 1)
        return tau


def _bootstrap(statistic: Callable[[Indices], Vector], count: int, **options: Any) -> Any:
    """scipy's bootstrap of whole samples; what has no interval is told by a note, not by a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bootstrap(
            (np.arange(count),),
            lambda rows, axis: statistic(np.atleast_2d(rows)).reshape(rows.shape[:-1]),
            vectorized=True,
            **options,
        )


def _resampled(statistic: Callable[[Indices], Vector], count: int, num_resamples: int, seed: int) -> Any:
    """Without the resamples that have no value."""
    rng = np.random.default_rng(seed)
    resampled = _bootstrap(statistic, count, n_resamples=num_resamples, method="percentile", rng=rng)
    resampled.bootstrap_distribution = resampled.bootstrap_distribution[np.isfinite(resampled.bootstrap_distribution)]
    return resampled


def _interval(
    statistic: Callable[[Indices], Vector], count: int, num_resamples: int, seed: int, confidence: float, method: Method
) -> tuple[float, float | None, float | None]:
    """The statistic of all samples and its interval; ends are None where resamples agree or are undefined.

    Where BCa has no value, as where leaving a sample out leaves no correlation, the percentile interval stands in.
    """
    estimate = float(statistic(np.arange(count)[None])[0])
    resampled = _resampled(statistic, count, num_resamples, seed)
    drawn = resampled.bootstrap_distribution
    if len(drawn) < num_resamples / 2 or np.ptp(drawn) < 1e-12:
        return estimate, None, None
    options = {"n_resamples": 0, "bootstrap_result": resampled, "confidence_level": confidence}
    low, high = _bootstrap(statistic, count, method=method, **options).confidence_interval
    if not low <= high:
        low, high = _bootstrap(statistic, count, method="percentile", **options).confidence_interval
    return estimate, float(low), float(high)


class Scaling(Record):
    """How y grows with x over all pairs of all samples; intervals resample whole samples.

    Attributes:
        num_pairs: number of pairs (x, y).
        num_samples: number of samples that they come from.
        decades: log10 of the largest over the smallest x; null where there is none.
        spearman: Spearman's rho of x and y, from -1 to 1; null where there is none.
        spearman_low: lower end of its interval; null where there is none.
        spearman_high: upper end of its interval; null where there is none.
        slope: slope of log y over log x by least squares; null where there is none.
        slope_low: lower end of its interval; null where there is none.
        slope_high: upper end of its interval; null where there is none.
        note: one sentence on what there is not and why; null where there is all.
    """

    num_pairs: int
    num_samples: int
    decades: float | None = None
    spearman: float | None = None
    spearman_low: float | None = None
    spearman_high: float | None = None
    slope: float | None = None
    slope_low: float | None = None
    slope_high: float | None = None
    note: str | None = None


def scaling(pairs: Mapping[str, Sequence[tuple[float, float]]], *, confidence: float = 0.95, seed: int = 0) -> Scaling:
    """How y grows with x, given positive pairs (x, y) per sample."""
    groups = [
        np.log10(np.asarray(sample_pairs, dtype=np.float64)) for sample_pairs in pairs.values() if len(sample_pairs)
    ]
    count, samples = sum(map(len, groups)), len(groups)
    empty = Scaling(num_pairs=count, num_samples=samples)
    if count < 3:
        return empty.model_copy(update={"note": f"too few pairs: {count}, at least 3 are needed"})
    whole = np.concatenate(groups)
    fields: dict[str, float | str] = {"decades": float(np.ptp(whole[:, 0]))}
    if fields["decades"] == 0 or np.ptp(whole[:, 1]) == 0:
        return empty.model_copy(update=fields | {"note": "all values are equal"})
    fields |= {"slope": _slope(whole), "spearman": _rho(whole)}
    if samples < FEWEST_SAMPLES:
        note = f"too few samples for an interval: {samples}, at least {FEWEST_SAMPLES} are needed"
        return empty.model_copy(update=fields | {"note": note})
    draws = np.random.default_rng(seed).integers(samples, size=(NUM_RESAMPLES, samples))
    resampled = [(_slope(drawn), _rho(drawn)) for drawn in (np.concatenate([groups[k] for k in row]) for row in draws)]
    ends = np.nanquantile(np.array(resampled), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    names = ("slope_low", "spearman_low", "slope_high", "spearman_high")
    return empty.model_copy(update=fields | dict(zip(names, ends.ravel().tolist(), strict=True)))


def _slope(pairs: NDArray[np.float64]) -> float:
    x, y = (pairs - pairs.mean(0)).T
    return float(x @ y / (x @ x)) if x @ x > 0 else float("nan")


def _rho(pairs: NDArray[np.float64]) -> float:
    return float(_spearman(pairs[:, 0], pairs[:, 1], np.arange(len(pairs))[None])[0])
