"""What the rows of an audit say together: classes, and how unevenly the leak falls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from riskaudit.results import ClassRow, Fairness, GroupStatistic, Inequality, SampleRow
from riskaudit.results.ranks import known_ends, num_rivals, position
from riskaudit.results.words import COMPARED, Riskier
from riskaudit.statistics.groups import group_statistic, kruskal_wallis

Name = TypeVar("Name")
Measure: TypeAlias = Callable[[SampleRow], float | None]

GROUP_CONFIDENCE = 0.95
NUM_WORST_SAMPLES = 5


def of_known(statistic: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    """A statistic of the values that are known, None where none is."""
    known = [value for value in values if value is not None]
    return statistic(known) if known else None


def grouped(rows: Iterable[SampleRow], name: Callable[[SampleRow], Name | None]) -> dict[Name, list[SampleRow]]:
    """Samples by the name of their group; those without one are left out."""
    groups: dict[Name, list[SampleRow]] = {}
    for row in rows:
        if (group := name(row)) is not None:
            groups.setdefault(group, []).append(row)
    return groups


def values_by_group(groups: Mapping[Name, Sequence[SampleRow]], measure: Measure) -> dict[Name, list[float]]:
    """What a measure says of each group's samples; groups without any value are left out."""
    values = {name: [value for row in rows if (value := measure(row)) is not None] for name, rows in groups.items()}
    return {name: numbers for name, numbers in values.items() if numbers}


def ends_of(rows: Iterable[SampleRow], proxy: str) -> list[tuple[float, float]]:
    """Ends of a proxy, of samples without a point value too."""
    return [ends for row in rows if (ends := known_ends(row.proxies.get(proxy))) is not None]


def _value(proxy: str) -> Measure:
    return lambda row: row.proxies[proxy].value if proxy in row.proxies else None


def _by_class(rows: Iterable[SampleRow]) -> dict[int, list[SampleRow]]:
    return dict(sorted(grouped(rows, lambda row: row.target if isinstance(row.target, int) else None).items()))


def class_rows(
    rows: Sequence[SampleRow], class_names: Sequence[str] | None, seed: int, proxies: Iterable[str] = COMPARED
) -> list[ClassRow]:
    """One row per class that occurs, with the statistics of each compared proxy that has values."""
    classes = _by_class(rows)
    statistics = {proxy: _class_statistics(classes, proxy, seed) for proxy in proxies}
    return [
        ClassRow(
            target=target,
            name=class_names[target] if class_names is not None and 0 <= target < len(class_names) else str(target),
            num_samples=len(members),
            proxies={proxy: by_class[target] for proxy, by_class in statistics.items() if target in by_class},
        )
        for target, members in classes.items()
    ]


def _class_statistics(classes: Mapping[int, Sequence[SampleRow]], proxy: str, seed: int) -> dict[int, GroupStatistic]:
    """A proxy over each class, with the interval of the mean that the samples' own intervals give where some do."""
    statistics = {
        target: group_statistic(values, confidence=GROUP_CONFIDENCE, seed=seed)
        for target, values in values_by_group(classes, _value(proxy)).items()
    }
    ends = {target: ends_of(classes[target], proxy) for target in classes}
    if all(low == high for intervals in ends.values() for low, high in intervals):
        return statistics
    for target, statistic in statistics.items():
        if ends[target]:
            low, high = (float(np.mean(side)) for side in zip(*ends[target], strict=True))
            statistics[target] = statistic.model_copy(update={"mean_low": low, "mean_high": high})
    return statistics


def inequalities(rows: Sequence[SampleRow], proxies: Mapping[str, Riskier] = COMPARED) -> Fairness:
    """Inequality of each compared proxy over samples and classes."""
    return Fairness(proxies={proxy: _inequality(rows, proxy, riskier) for proxy, riskier in proxies.items()})


def _inequality(rows: Sequence[SampleRow], proxy: str, riskier: Riskier) -> Inequality:
    sign = -1.0 if riskier == "higher" else 1.0
    placed = [(position(row.proxies.get(proxy), riskier), row.id) for row in rows]
    ranked = [(key, sample_id) for key, sample_id in placed if key is not None]
    if not ranked:
        return Inequality(note="no sample has a value")
    # Sorting is stable, so equal values keep the order of the data.
    worst = sorted(ranked, key=lambda pair: sign * pair[0])[:NUM_WORST_SAMPLES]
    values = [value for row in rows if (value := _value(proxy)(row)) is not None]
    groups = values_by_group(_by_class(rows), _value(proxy))
    means = {target: float(np.mean(members)) for target, members in groups.items()}
    return Inequality(
        gini=gini(values) if values else None,
        max_min_ratio=max_min_ratio(values) if values else None,
        kruskal_wallis=kruskal_wallis(groups) if groups else None,
        worst_class=min(means, key=lambda target: sign * means[target]) if len(means) > 1 else None,
        worst_samples=[sample_id for _, sample_id in worst],
        note=_inequality_note(rows, proxy, riskier, len(ranked)),
    )


def _inequality_note(rows: Sequence[SampleRow], proxy: str, riskier: str, num_known: int) -> str | None:
    if num_known == 1:
        return "too few samples: one value can't be unequal"
    ends = ends_of(rows, proxy)
    rivals = num_rivals(ends, riskier)
    if rivals < 2 or not any(low < high for low, high in ends):
        return None
    return f"intervals overlap: which of {rivals} samples is the most exposed can't be told"


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
