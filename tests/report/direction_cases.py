"""Synthetic directions studies for the report tests."""

from __future__ import annotations

import numpy as np

from riskaudit.results import AuditResult
from riskaudit.studies.directions.record import (
    DirectionAgreement,
    DirectionRow,
    DirectionsStudy,
    LayerSummary,
    ShapingAttack,
    ShapingRow,
    ShapingSummary,
    SpectrumRow,
)

SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
NORM, DIMENSION = 0.01, 784
PREDICTED = {"isotropic": 0.012, "in_range": 0.05, "water_filled_in_range": 0.03, "water_filled": 0.08}
LAYERS = ("conv1", "conv2", "conv3", "conv4", "fc")


def directions_study(
    result: AuditResult, *, attacked: bool = True, known: bool = True, seed: int = 0
) -> DirectionsStudy:
    """A study of an audit's samples; ``known`` is whether all eigenvalues are."""
    rng = np.random.default_rng(seed)
    ids = [row.id for row in result.samples]
    spectra, rows, shaping = [], [], []
    attacks = ["local", "dlg"] if attacked else []
    for sample in ids:
        values = [float(10 ** (-4 + 5 * share + 0.1 * rng.standard_normal())) for share in SHARES]
        spectra.append(_spectrum(sample, sorted(values), known))
        for direction, place in (("largest", -1), ("quantile 0.5", 5), ("smallest", 0), ("noise", None)):
            value = None if place is None else sorted(values)[place]
            predicted = 0.001 if value is None else NORM / (value * DIMENSION) ** 0.5
            usable = known or direction == "largest"
            rows.append(
                DirectionRow(
                    sample_id=sample,
                    direction=direction,
                    eigenvalue=value if usable else None,
                    predicted_rmse=predicted if usable else None,
                    status="exact" if usable else "not_applicable",
                    reason=None if usable else "not all eigenvalues were computed",
                    attacked={name: predicted * rng.uniform(0.97, 1.03) for name in attacks} if usable else {},
                    attack_status=dict.fromkeys(attacks, "converged") if usable else {},
                )
            )
        hits = [
            ShapingAttack(scheme="isotropic", attacker="knows", rmse=0.012, status="converged"),
            ShapingAttack(scheme="water_filled", attacker="knows", rmse=0.01, status="converged"),
        ]
        if known:
            shaping.append(
                ShapingRow(
                    sample_id=sample,
                    predicted=PREDICTED,
                    water_level=0.4,
                    attacks=hits if attacked else [],
                    status="exact",
                )
            )
    return DirectionsStudy(
        norm=NORM,
        noise_std=0.01,
        reference=False,
        prior_std=0.3,
        num_entries=17_038,
        dimension=DIMENSION,
        power=17_038 * 1e-4,
        prune_ratio=0.9,
        attacks=attacks,
        quantile_shares=list(SHARES),
        spectra=spectra,
        directions=rows,
        agreement=[
            DirectionAgreement(
                attack=name, num_pairs=3 * len(ids), num_samples=len(ids), decades=4.8, spearman=0.999,
                spearman_low=0.998, spearman_high=1.0, slope=1.001, slope_low=0.99, slope_high=1.01,
                tightness_median=1.0,
            )
            for name in attacks
        ],
        layers=[_layer(name, place, known) for place, name in enumerate(LAYERS)],
        shaping=shaping,
        shaping_summary=[_scheme(name, len(ids), attacked) for name in PREDICTED] if known else [],
        layers_reason=None if known else "what a layer reveals needs all rows of J",
        shaping_reason=None if known else "d = 150,528 is too large",
        seconds=3.0,
        notes=["shaped noise depends on the private input"],
    )  # fmt: skip


def _spectrum(sample: str, values: list[float], known: bool) -> SpectrumRow:
    return SpectrumRow(
        sample_id=sample,
        dimension=DIMENSION,
        num_known=DIMENSION if known else 3,
        rank=DIMENSION if known else None,
        largest=values[-1],
        smallest=values[0] if known else None,
        spread=values[-1] / values[0] if known else None,
        effective_rank=40.0 if known else None,
        entropy_rank=90.0 if known else None,
        values=values if known else values[-3:],
        status="exact" if known else "bracketed",
        reason=None if known else "not all eigenvalues were computed",
    )


def _layer(name: str, place: int, known: bool) -> LayerSummary:
    return LayerSummary(
        layer=name,
        num_entries=300 * (place + 1),
        num_samples=8,
        revealed=0.9 - 0.1 * place if known else None,
        revealed_low=0.85 - 0.1 * place if known else None,
        revealed_high=0.95 - 0.1 * place if known else None,
        revealed_without=0.95 if known else None,
        information_share=0.2,
    )


def _scheme(name: str, count: int, attacked: bool) -> ShapingSummary:
    hits = {"isotropic": {"knows": 0.012}, "water_filled": {"ignores": 0.1, "knows": 0.01}}.get(name, {})
    return ShapingSummary(
        scheme=name,  # type: ignore[arg-type]
        num_samples=count,
        predicted=PREDICTED[name],
        share_better=None if name == "isotropic" else 1.0,
        attacked=hits if attacked else {},
    )


def with_directions(result: AuditResult, **options: bool) -> AuditResult:
    """The audit with a directions study, as it stands in audit.json."""
    study = directions_study(result, **options)  # type: ignore[arg-type]
    return result.with_study(study)
