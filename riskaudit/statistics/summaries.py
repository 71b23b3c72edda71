"""What the rows of an audit say together: classes, and how unevenly the leak falls."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from riskaudit.results import ClassRow, Fairness, GroupStatistic, Inequality, SampleRow
from riskaudit.results.ranks import known_ends, num_rivals, position
from riskaudit.results.words import COMPARED, Riskier
from riskaudit.statistics.groups import group_statistic, kruskal_wallis
from riskaudit.statistics.inequality import gini, max_min_ratio

GROUP_CONFIDENCE = 0.95
NUM_WORST_SAMPLES = 5


def value_of(row: SampleRow, proxy: str) -> float | None:
    """A row's value of a proxy, None where it has none."""
    estimate = row.proxies.get(proxy)
    return None if estimate is None else estimate.value


def _values_by_class(rows: Sequence[SampleRow], proxy: str) -> dict[int, list[float]]:
    """Values of a proxy per class number; rows without a class or a value are left out."""
    groups: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        value = value_of(row, proxy)
        if isinstance(row.target, int) and value is not None:
            groups[row.target].append(value)
    return dict(sorted(groups.items()))


def _ends_by_class(rows: Sequence[SampleRow], proxy: str) -> dict[int, list[tuple[float, float]]]:
    """Ends of a proxy per class number, of samples without a point value too; nothing where all values are exact."""
    groups: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        ends = known_ends(row.proxies.get(proxy))
        if isinstance(row.target, int) and ends is not None:
            groups[row.target].append(ends)
    return groups if any(low < high for intervals in groups.values() for low, high in intervals) else {}


def _with_ends(statistic: GroupStatistic, ends: Sequence[tuple[float, float]]) -> GroupStatistic:
    """The statistic with the interval of the mean that the samples' own intervals give."""
    if not ends:
        return statistic
    low, high = (float(np.mean(side)) for side in zip(*ends, strict=True))
    return statistic.model_copy(update={"mean_low": low, "mean_high": high})


def class_rows(
    rows: Sequence[SampleRow], class_names: Sequence[str] | None, seed: int, proxies: Iterable[str] = COMPARED
) -> list[ClassRow]:
    """One row per class that occurs, with the statistics of each compared proxy that has values."""
    targets = sorted({row.target for row in rows if isinstance(row.target, int)})
    groups = {proxy: _values_by_class(rows, proxy) for proxy in proxies}
    ends = {proxy: _ends_by_class(rows, proxy) for proxy in groups}
    sizes = Counter(row.target for row in rows if isinstance(row.target, int))
    return [
        ClassRow(
            target=target,
            name=class_names[target] if class_names is not None and 0 <= target < len(class_names) else str(target),
            num_samples=sizes[target],
            proxies={
                proxy: _with_ends(
                    group_statistic(values[target], confidence=GROUP_CONFIDENCE, seed=seed), ends[proxy].get(target, ())
                )
                for proxy, values in groups.items()
                if target in values
            },
        )
        for target in targets
    ]


def inequalities(rows: Sequence[SampleRow], proxies: Mapping[str, Riskier] = COMPARED) -> Fairness:
    """Inequality of each compared proxy over samples and classes.

    Args:
        rows: of an audit.
        proxies: which end of each is the greater risk, by id.
    """
    return Fairness(proxies={proxy: _inequality(rows, proxy, riskier) for proxy, riskier in proxies.items()})


def _inequality(rows: Sequence[SampleRow], proxy: str, riskier: Riskier) -> Inequality:
    sign = -1.0 if riskier == "higher" else 1.0
    placed = [(position(row.proxies.get(proxy), riskier), row.id) for row in rows]
    ranked = [(key, sample_id) for key, sample_id in placed if key is not None]
    if not ranked:
        return Inequality(note="no sample has a value")
    # Sorting is stable, so equal values keep the order of the data.
    worst = sorted(ranked, key=lambda pair: sign * pair[0])[:NUM_WORST_SAMPLES]
    values = [value for row in rows if (value := value_of(row, proxy)) is not None]
    groups = _values_by_class(rows, proxy)
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
    estimates = [row.proxies.get(proxy) for row in rows]
    ends = [interval for interval in map(known_ends, estimates) if interval is not None]
    rivals = num_rivals(ends, riskier)
    if rivals < 2 or not any(low < high for low, high in ends):
        return None
    return f"intervals overlap: which of {rivals} samples is the most exposed can't be told"
