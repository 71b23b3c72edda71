"""What the rows of an audit say together: classes, and how unevenly the leak falls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np

from riskaudit.results import ClassRow, Fairness, GroupStatistic, Inequality, SampleRow
from riskaudit.results.estimates import EstimateColumn
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


@dataclass
class _OfClass:
    """What one proxy says of a class's samples: the values that are known, and the ends that are."""

    values: list[float] = field(default_factory=list)
    ends: list[tuple[float, float]] = field(default_factory=list)


class _Columns:
    """What is compared of all samples, gone through once: rows may be many, so that none is held.

    Args:
        rows: of all samples.
        proxies: that are compared.
    """

    def __init__(self, rows: Iterable[SampleRow], proxies: Iterable[str]) -> None:
        self.ids, self.classes = list[str](), list[int | None]()
        self.estimates = {proxy: EstimateColumn() for proxy in proxies}
        for place, row in enumerate(rows):
            self.ids.append(row.id)
            self.classes.append(row.target if isinstance(row.target, int) else None)
            for proxy, column in self.estimates.items():
                if proxy in row.proxies:
                    column.append(place, row.proxies[proxy])

    @property
    def sizes(self) -> dict[int, int]:
        """Samples of every class."""
        counts = Counter(target for target in self.classes if target is not None)
        return dict(sorted(counts.items()))

    def by_class(self, proxy: str) -> dict[int, _OfClass]:
        """A proxy's numbers by class."""
        found = {target: _OfClass() for target in self.sizes}
        for place, estimate in self.estimates[proxy].by_place():
            target = self.classes[place]
            if target is None:
                continue
            if estimate.value is not None:
                found[target].values.append(estimate.value)
            if (ends := known_ends(estimate)) is not None:
                found[target].ends.append(ends)
        return found


def class_rows(
    rows: Sequence[SampleRow], class_names: Sequence[str] | None, seed: int, proxies: Iterable[str] = COMPARED
) -> list[ClassRow]:
    """One row per class that occurs, with the statistics of each compared proxy that has values."""
    columns = _Columns(rows, proxies)
    statistics = {proxy: _class_statistics(columns.by_class(proxy), seed) for proxy in columns.estimates}
    return [
        ClassRow(
            target=target,
            name=class_names[target] if class_names is not None and 0 <= target < len(class_names) else str(target),
            num_samples=size,
            proxies={proxy: by_class[target] for proxy, by_class in statistics.items() if target in by_class},
        )
        for target, size in columns.sizes.items()
    ]


def _class_statistics(classes: Mapping[int, _OfClass], seed: int) -> dict[int, GroupStatistic]:
    """A proxy over each class, with the interval of the mean that the samples' own intervals give where some do."""
    statistics = {
        target: group_statistic(each.values, confidence=GROUP_CONFIDENCE, seed=seed)
        for target, each in classes.items()
        if each.values
    }
    ends = {target: each.ends for target, each in classes.items()}
    if all(low == high for intervals in ends.values() for low, high in intervals):
        return statistics
    for target, statistic in statistics.items():
        if ends[target]:
            low, high = (float(np.mean(side)) for side in zip(*ends[target], strict=True))
            statistics[target] = statistic.model_copy(update={"mean_low": low, "mean_high": high})
    return statistics


def inequalities(rows: Sequence[SampleRow], proxies: Mapping[str, Riskier] = COMPARED) -> Fairness:
    """Inequality of each compared proxy over samples and classes."""
    columns = _Columns(rows, proxies)
    return Fairness(proxies={proxy: _inequality(columns, proxy, riskier) for proxy, riskier in proxies.items()})


def _inequality(columns: _Columns, proxy: str, riskier: Riskier) -> Inequality:
    sign, estimates = -1.0 if riskier == "higher" else 1.0, columns.estimates[proxy]
    placed = [(position(estimate, riskier), columns.ids[place]) for place, estimate in estimates.by_place()]
    ranked = [(key, sample_id) for key, sample_id in placed if key is not None]
    if not ranked:
        return Inequality(note="no sample has a value")
    # Sorting is stable, so equal values keep the order of the data.
    worst = sorted(ranked, key=lambda pair: sign * pair[0])[:NUM_WORST_SAMPLES]
    values = [estimate.value for estimate in estimates if estimate.value is not None]
    groups = {target: each.values for target, each in columns.by_class(proxy).items() if each.values}
    means = {target: float(np.mean(members)) for target, members in groups.items()}
    return Inequality(
        gini=gini(values) if values else None,
        max_min_ratio=max_min_ratio(values) if values else None,
        kruskal_wallis=kruskal_wallis(groups) if groups else None,
        worst_class=min(means, key=lambda target: sign * means[target]) if len(means) > 1 else None,
        worst_samples=[sample_id for _, sample_id in worst],
        note=_inequality_note(estimates, riskier, len(ranked)),
    )


def _inequality_note(estimates: EstimateColumn, riskier: str, num_known: int) -> str | None:
    if num_known == 1:
        return "too few samples: one value can't be unequal"
    ends = [ends for estimate in estimates if (ends := known_ends(estimate)) is not None]
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
