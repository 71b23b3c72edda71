"""What the rows of an audit say together: classes, and how unevenly the leak falls."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from riskaudit.results import ClassRow, Fairness, Inequality, SampleRow
from riskaudit.statistics.groups import group_statistic, kruskal_wallis
from riskaudit.statistics.inequality import gini, max_min_ratio

COMPARED = ("revealed_fraction", "posterior_rmse")
GROUP_CONFIDENCE = 0.95
NUM_WORST_SAMPLES = 5
HIGHER_IS_RISKIER = frozenset(
    {"revealed_fraction", "lavp_l2_max", "lavp_l2_min", "lavp_cosine_max", "lavp_cosine_min", "gradient_norm"}
)


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


def class_rows(
    rows: Sequence[SampleRow], class_names: Sequence[str] | None, seed: int, proxies: Sequence[str] = COMPARED
) -> list[ClassRow]:
    """One row per class that occurs, with the statistics of each compared proxy that has values."""
    targets = sorted({row.target for row in rows if isinstance(row.target, int)})
    groups = {proxy: _values_by_class(rows, proxy) for proxy in proxies}
    sizes = Counter(row.target for row in rows if isinstance(row.target, int))
    return [
        ClassRow(
            target=target,
            name=class_names[target] if class_names is not None and 0 <= target < len(class_names) else str(target),
            num_samples=sizes[target],
            proxies={
                proxy: group_statistic(values[target], confidence=GROUP_CONFIDENCE, seed=seed)
                for proxy, values in groups.items()
                if target in values
            },
        )
        for target in targets
    ]


def inequalities(rows: Sequence[SampleRow], proxies: Sequence[str] = COMPARED) -> Fairness:
    """Inequality of each compared proxy over samples and classes."""
    return Fairness(proxies={proxy: _inequality(rows, proxy) for proxy in proxies})


def _inequality(rows: Sequence[SampleRow], proxy: str) -> Inequality:
    valued = [(value_of(row, proxy), row.id) for row in rows]
    known = [(value, sample_id) for value, sample_id in valued if value is not None]
    if not known:
        return Inequality(note="no sample has a value")
    sign = -1.0 if proxy in HIGHER_IS_RISKIER else 1.0
    values = [value for value, _ in known]
    groups = _values_by_class(rows, proxy)
    means = {target: float(np.mean(members)) for target, members in groups.items()}
    # Sorting is stable, so equal values keep the order of the data.
    worst = sorted(known, key=lambda pair: sign * pair[0])[:NUM_WORST_SAMPLES]
    return Inequality(
        gini=gini(values),
        max_min_ratio=max_min_ratio(values),
        kruskal_wallis=kruskal_wallis(groups) if groups else None,
        worst_class=min(means, key=lambda target: sign * means[target]) if len(means) > 1 else None,
        worst_samples=[sample_id for _, sample_id in worst],
        note=None if len(known) > 1 else "too few samples: one value can't be unequal",
    )
