"""Groups of samples compared: summaries with bootstrap intervals, which of them differ, and by how much.

    Cliff's delta = P(x > y) - P(x < y) = 2 U / (n m) - 1, the rank-biserial correlation (Cliff 1993; Kerby 2014)
    epsilon squared = H / (n - 1), the effect size of the Kruskal-Wallis statistic H (Tomczak and Tomczak 2014)
    Holm's p_(i) = max over j <= i of min(1, (k - j + 1) p_(j)) for k p-values ascending (Holm 1979)

Holm's correction holds whatever the dependence between the tests. The tests compare ranks: they need independent
samples, and say nothing of groups that are too small (`FEWEST_SAMPLES`).

Medians of several treatments of the same samples, each repeated with several seeds, are compared with the best. That
bootstrap draws samples, the same ones for every treatment (they are paired), and seeds, for each treatment anew (they
are not): the two ways in which another experiment would have come out differently (Efron 1979). With few seeds it
sees little of how seeds differ, so its intervals are rather too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from riskaudit.results import ClassTest, GroupStatistic
from riskaudit.results.base import Record

# Below this many samples a percentile bootstrap covers far less than it claims, and the chi-squared
# approximation of the Kruskal-Wallis statistic is poor.
FEWEST_SAMPLES = 5
NUM_RESAMPLES = 2000
_MOST_DRAWN = 1_000_000
# With more groups than this each is held against all others together: pairs would be thousands.
MOST_FOR_PAIRS = 30
# The exact distribution of U takes long to count for more samples than this.
MOST_FOR_EXACT = 200
Values = npt.NDArray[np.float64]


def group_statistic(values: Sequence[float], *, confidence: float, seed: int) -> GroupStatistic:
    """Mean, min, max, std (n - 1) and percentile bootstrap interval of the mean (Efron 1979).

    With fewer than `FEWEST_SAMPLES` values there is no interval, and the note says so; with one there
    is no std either.
    """
    data = np.asarray(values, dtype=np.float64)
    enough = len(data) >= FEWEST_SAMPLES
    low = high = None
    if enough:
        # A few resamples at a time: all at once would take gigabytes where there are many samples.
        resampled = stats.bootstrap(
            (data,),
            np.mean,
            n_resamples=NUM_RESAMPLES,
            batch=max(1, _MOST_DRAWN // len(data)),
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        low, high = (float(end) for end in resampled.confidence_interval)
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


class PairTest(Record):
    """Mann-Whitney test of two groups.

    Attributes:
        first: name of the one group.
        second: name of the other; null where ``first`` is held against all others together.
        statistic: the test's U of ``first``.
        p_value: two-sided p-value, 0 to 1.
        p_adjusted: Holm's, over all pairs of the comparison, 0 to 1.
        effect: Cliff's delta (the rank-biserial correlation): how much more often a sample of ``first`` has the greater
            value than one of ``second``, from -1 to 1.
    """

    first: str
    second: str | None
    statistic: float
    p_value: float
    p_adjusted: float
    effect: float


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for testing all of them, in the order given."""
    count = len(p_values)
    adjusted, largest = [0.0] * count, 0.0
    for rank, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def epsilon_squared(statistic: float, num_samples: int) -> float | None:
    """Effect size of a Kruskal-Wallis statistic over n samples: 0 no difference, 1 groups don't overlap at all."""
    return min(1.0, statistic / (num_samples - 1)) if num_samples > 1 else None


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """U of the first group, the two-sided p-value and Cliff's delta (positive: the first has the greater values)."""
    n, m = len(first), len(second)
    if np.ptp(np.concatenate([np.asarray(first), np.asarray(second)])) == 0:
        return n * m / 2, 1.0, 0.0
    method = "auto" if max(n, m) <= MOST_FOR_EXACT else "asymptotic"
    outcome = stats.mannwhitneyu(first, second, alternative="two-sided", method=method)
    statistic = float(outcome.statistic)
    return statistic, float(outcome.pvalue), 2 * statistic / (n * m) - 1


def pair_tests(groups: Mapping[str, Sequence[float]]) -> list[PairTest]:
    """All pairs of groups large enough, or each group against the others where there are very many."""
    tested = {name: list(values) for name, values in groups.items() if len(values) >= FEWEST_SAMPLES}
    pairs = list(_pairs(tested))
    tests = [mann_whitney(left, right) for _, _, left, right in pairs]
    adjusted = holm([p_value for _, p_value, _ in tests])
    return [
        PairTest(first=first, second=second, statistic=statistic, p_value=p_value, p_adjusted=p_adjusted, effect=effect)
        for (first, second, _, _), (statistic, p_value, effect), p_adjusted in zip(pairs, tests, adjusted, strict=True)
    ]


def least_p_value(first: int, second: int) -> float:
    """The smallest two-sided p-value that an exact Mann-Whitney test of so many samples can have."""
    return min(1.0, 2 / math.comb(first + second, first))


def _pairs(groups: dict[str, list[float]]) -> Iterator[tuple[str, str | None, list[float], list[float]]]:
    names = list(groups)
    if len(names) <= MOST_FOR_PAIRS:
        for number, first in enumerate(names):
            for second in names[number + 1 :]:
                yield first, second, groups[first], groups[second]
        return
    for first in names:
        yield first, None, groups[first], [value for name in names if name != first for value in groups[name]]


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

    Treatments are [seeds, N] each, seeds of its own number, NaN where a value is missing; those ``aside`` can't be the
    best one, with which all are compared. Percentile intervals.
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


def paired_difference(
    first: Values, second: Values, *, confidence: float, seed: int, num_resamples: int = NUM_RESAMPLES
) -> tuple[float | None, float | None, float | None]:
    """Mean of ``first`` - ``second``, [S, N] each, paired by seed and by sample, and its percentile interval.

    The bootstrap draws samples and seeds. Samples that are NaN anywhere are left out; without any there is no
    difference, and with one seed or fewer than `FEWEST_SAMPLES` samples no interval.
    """
    if not first.size or not second.size:
        return None, None, None
    differences = first - second
    differences = differences[:, ~np.isnan(differences).any(axis=0)]
    if not differences.size:
        return None, None, None
    seeds, samples = differences.shape
    mean = float(differences.mean())
    if seeds < 2 or samples < FEWEST_SAMPLES:
        return mean, None, None
    rng = np.random.default_rng(seed)
    rows = rng.integers(seeds, size=(num_resamples, seeds))
    columns = rng.integers(samples, size=(num_resamples, samples))
    means = np.array([differences[np.ix_(*chosen)].mean() for chosen in zip(rows, columns, strict=True)])
    return (mean, *_ends(means, [(1 - confidence) / 2, (1 + confidence) / 2]))


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
