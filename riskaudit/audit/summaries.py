"""What the rows say of other noise levels."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from riskaudit.results import NoiseCurvePoint, NoiseNeed, SampleRow, Status
from riskaudit.sensitivity import Information

CURVE_POINTS = 25


def noise_needed(
    rows: Sequence[SampleRow],
    information: Collection[Information],
    limits: Sequence[float],
    least_errors: Mapping[float, float] | None = None,
) -> list[NoiseNeed]:
    """Noise that is sure to keep all samples within each limit on revealed_fraction, most permissive first.

    Args:
        rows: all samples.
        information: of those that have a revealed fraction, in their order; gone through once for each limit.
        limits: revealed fractions; only those in (0, 1) can ask for noise.
        least_errors: the posterior errors that some limits stand for, which samples with priors of their own
            reach at different revealed fractions.
    """
    ids = [row.id for row in rows if row.status != "failed"]
    needs = []
    for limit in sorted({limit for limit in limits if 0 < limit < 1}, reverse=True):
        # posterior_rmse = tau sqrt(1 - revealed_fraction)
        least = (least_errors or {}).get(limit, 0.0)
        known, statuses = [], list[Status]()
        for each, sample_id in zip(information, ids, strict=bool(information)):
            target = each.noise_for(max(each.tau * math.sqrt(1 - limit), least))
            if target.std is not None:
                known.append((target.std, sample_id))
                statuses = statuses or [each.status]
        if known and len(known) == len(ids):
            std, sample_id = max(known, key=lambda pair: pair[0])
            needs.append(
                NoiseNeed(
                    max_revealed=limit,
                    std=std,
                    median_std=float(np.median([value for value, _ in known])),
                    sample_id=sample_id,
                    # Without the first sample's not all are known.
                    status=statuses[0],
                )
            )
    return needs


def noise_curve(information: Collection[Information]) -> list[NoiseCurvePoint]:
    """The posterior over all samples at noise from "reveals nearly all" to "reveals nearly nothing".

    What samples tell is gone through twice.
    """
    scales = np.array([each.scale for each in information])
    if not len(scales) or not np.isfinite(scales).all() or scales[:, 1].max() <= 0:
        return []
    tau, largest = next(iter(information)).tau, scales[:, 1].max()
    typical = max(float(np.median(scales[:, 0])), 1e-12 * largest)
    grid = np.geomspace(tau * np.sqrt(typical) / 10, tau * np.sqrt(largest) * 10, CURVE_POINTS)
    sigmas = [float(f"{std:.3g}") for std in grid]
    # Value, low and high of the revealed fraction, value and low of the error: [5, points, samples].
    found = np.empty((5, len(sigmas), len(scales)))
    for place, each in enumerate(information):
        for point, sigma in enumerate(sigmas):
            revealed, error = each.revealed(sigma), each.error(sigma)
            found[:, point, place] = revealed.value, revealed.low, revealed.high, error.value, error.low
    return [_point(sigma, *found[:, point]) for point, sigma in enumerate(sigmas)]


def _point(
    std: float, value: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64],
    error: NDArray[np.float64], least: NDArray[np.float64],
) -> NoiseCurvePoint:  # fmt: skip
    bracketed = bool((low < high).any())
    return NoiseCurvePoint(
        std=std,
        revealed_fraction_mean=float(value.mean()),
        revealed_fraction_max=float(high.max()),
        posterior_rmse_mean=float(error.mean()),
        posterior_rmse_min=float(least.min()),
        revealed_fraction_mean_low=float(low.mean()) if bracketed else None,
        revealed_fraction_mean_high=float(high.mean()) if bracketed else None,
    )
