"""Which groups differ, and by how much.

    Cliff's delta = P(x > y) - P(x < y) = 2 U / (n m) - 1, the rank-biserial correlation (Cliff 1993; Kerby 2014)
    epsilon squared = H / (n - 1), the effect size of the Kruskal-Wallis statistic H (Tomczak and Tomczak 2014)
    Holm's p_(i) = max over j <= i of min(1, (k - j + 1) p_(j)) for k p-values ascending (Holm 1979)

Holm's correction holds whatever the dependence between the tests. The tests compare ranks: they need independent
samples, and say nothing of groups that are too small (`FEWEST_SAMPLES`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from riskaudit.statistics.groups import FEWEST_SAMPLES

# With more groups than this each is held against all others together: pairs would be thousands.
MOST_FOR_PAIRS = 30
# The exact distribution of U takes long to count for more samples than this.
MOST_FOR_EXACT = 200


@dataclass(frozen=True)
class PairTest:
    """Mann-Whitney test of two groups; ``second`` None is all others together."""

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
    for place, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - place) * p_values[index]))
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
    found = [mann_whitney(left, right) for _, _, left, right in pairs]
    adjusted = holm([p_value for _, p_value, _ in found])
    return [
        PairTest(first, second, statistic, p_value, p_adjusted, effect)
        for (first, second, _, _), (statistic, p_value, effect), p_adjusted in zip(pairs, found, adjusted, strict=True)
    ]


def least_p_value(first: int, second: int) -> float:
    """The smallest two-sided p-value that an exact Mann-Whitney test of so many samples can have."""
    return min(1.0, 2 / math.comb(first + second, first))


def _pairs(groups: dict[str, list[float]]) -> Iterator[tuple[str, str | None, list[float], list[float]]]:
    names = list(groups)
    if len(names) <= MOST_FOR_PAIRS:
        for place, first in enumerate(names):
            for second in names[place + 1 :]:
                yield first, second, groups[first], groups[second]
        return
    for first in names:
        yield first, None, groups[first], [value for name in names if name != first for value in groups[name]]
