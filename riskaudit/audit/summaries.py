"""What the rows say of other noise levels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from riskaudit.results import NoiseCurvePoint, NoiseNeed, SampleRow
from riskaudit.sensitivity import Information

CURVE_POINTS = 25


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
        bracketed = any(each.low < each.high for each in revealed)
        errors = [each.error(sigma) for each in information]
        points.append(
            NoiseCurvePoint(
                std=sigma,
                revealed_fraction_mean=float(np.mean([each.value for each in revealed])),
                revealed_fraction_max=max(each.high for each in revealed),
                posterior_rmse_mean=float(np.mean([each.value for each in errors])),
                posterior_rmse_min=min(each.low for each in errors),
                revealed_fraction_mean_low=float(np.mean([each.low for each in revealed])) if bracketed else None,
                revealed_fraction_mean_high=float(np.mean([each.high for each in revealed])) if bracketed else None,
            )
        )
    return points
