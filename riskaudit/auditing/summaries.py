"""What the rows say together: classes, unfairness, and the effect of other noise levels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from riskaudit.proxies import PROXIES, Information
from riskaudit.results import ClassRow, Fairness, Inequality, NoiseCurvePoint, NoiseNeed, SampleRow
from riskaudit.statistics import gini, group_statistic, kruskal_wallis, max_min_ratio

COMPARED = ("revealed_fraction", "posterior_rmse")
GROUP_CONFIDENCE = 0.95
NUM_WORST_SAMPLES = 5
CURVE_POINTS = 25


def _values_by_class(rows: Sequence[SampleRow], proxy: str) -> dict[int, list[float]]:
    """Values of a proxy per class number; rows without a class or a value are left out."""
    groups: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        value = row.proxies[proxy].value
        if isinstance(row.target, int) and value is not None:
            groups[row.target].append(value)
    return dict(sorted(groups.items()))


def class_rows(rows: Sequence[SampleRow], class_names: Sequence[str] | None, seed: int) -> list[ClassRow]:
    """One row per class that occurs, with the statistics of each compared proxy that has values."""
    targets = sorted({row.target for row in rows if isinstance(row.target, int)})
    groups = {proxy: _values_by_class(rows, proxy) for proxy in COMPARED}
    return [
        ClassRow(
            target=target,
            name=class_names[target] if class_names is not None and target < len(class_names) else str(target),
            num_samples=sum(row.target == target for row in rows),
            proxies={
                proxy: group_statistic(values[target], confidence=GROUP_CONFIDENCE, seed=seed)
                for proxy, values in groups.items()
                if target in values
            },
        )
        for target in targets
    ]


def fairness(rows: Sequence[SampleRow]) -> Fairness:
    """Inequality of each compared proxy over samples and classes."""
    return Fairness(proxies={proxy: _inequality(rows, proxy) for proxy in COMPARED})


def _inequality(rows: Sequence[SampleRow], proxy: str) -> Inequality:
    valued = [(row.proxies[proxy].value, row.id) for row in rows]
    known = [(value, sample_id) for value, sample_id in valued if value is not None]
    if not known:
        return Inequality(note="no sample has a value")
    sign = -1.0 if PROXIES[proxy].riskier == "higher" else 1.0
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


def noise_needed(
    rows: Sequence[SampleRow],
    information: Sequence[Information],
    limits: Sequence[float],
    least_errors: Mapping[float, float] | None = None,
) -> list[NoiseNeed]:
    """Noise that is sure to keep all samples within each limit on revealed_fraction, most permissive first.

    Args:
        rows: all samples.
        information: of those that have a revealed fraction, in their order.
        limits: revealed fractions; only those in (0, 1) can ask for noise.
        least_errors: the posterior errors that some limits stand for, which samples with priors of their own
            reach at different revealed fractions.
    """
    ids = [row.id for row in rows if row.status != "failed"]
    needs = []
    for limit in sorted({limit for limit in limits if 0 < limit < 1}, reverse=True):
        # posterior_rmse = tau sqrt(1 - revealed_fraction)
        least = (least_errors or {}).get(limit, 0.0)
        targets = [each.noise_for(max(each.tau * math.sqrt(1 - limit), least)) for each in information]
        known = [
            (target.std, sample_id)
            for target, sample_id in zip(targets, ids, strict=bool(information))
            if target.std is not None
        ]
        if known and len(known) == len(ids):
            std, sample_id = max(known, key=lambda pair: pair[0])
            needs.append(
                NoiseNeed(
                    max_revealed=limit,
                    std=std,
                    median_std=float(np.median([value for value, _ in known])),
                    sample_id=sample_id,
                    status=information[0].status,
                )
            )
    return needs


def noise_curve(information: Sequence[Information]) -> list[NoiseCurvePoint]:
    """The posterior over all samples at noise from "reveals nearly all" to "reveals nearly nothing"."""
    scales = np.array([each.scale for each in information])
    if not len(scales) or not np.isfinite(scales).all() or scales[:, 1].max() <= 0:
        return []
    tau, largest = information[0].tau, scales[:, 1].max()
    typical = max(float(np.median(scales[:, 0])), 1e-12 * largest)
    grid = np.geomspace(tau * np.sqrt(typical) / 10, tau * np.sqrt(largest) * 10, CURVE_POINTS)
    points = []
    for std in grid:
        sigma = float(f"{std:.3g}")
        revealed = [each.revealed(sigma) for each in information]
        errors = [each.error(sigma) for each in information]
        points.append(
            NoiseCurvePoint(
                std=sigma,
                revealed_fraction_mean=float(np.mean([each.value for each in revealed])),
                revealed_fraction_max=max(each.high for each in revealed),
                posterior_rmse_mean=float(np.mean([each.value for each in errors])),
                posterior_rmse_min=min(each.low for each in errors),
            )
        )
    return points
