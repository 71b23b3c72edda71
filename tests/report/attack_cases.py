"""Synthetic attack studies for the report tests: three attacks and an oracle start at two noise levels."""

from __future__ import annotations

import math
import random
from typing import Any, Literal

from riskaudit.metrics import METRICS
from riskaudit.results import AuditResult, CalibrationInfo, Estimate, Studies, SuccessProbability
from riskaudit.sensitivity.success import PREDICTED_RMSE
from riskaudit.studies.rows import AttackRow, Control
from riskaudit.studies.verify.agreement import agreement_rows, loss_comparisons, reliability_records, timings
from riskaudit.studies.verify.record import AttackerKnowledge, Prediction, PriorOnly, VerifyStudy

# Typical attack RMSE over prediction, its spread, and seconds per sample.
ATTACKS = {
    "gauss-newton": (1.03, 0.06, 2.4),
    "l2": (1.5, 0.2, 11.0),
    "cosine-tv": (1.9, 0.3, 19.0),
    "local-l2": (0.99, 0.03, 3.1),
}
ORACLE = "local-l2"
PRIOR_RMSE = 0.31
TOLERANCE = 0.2


def _prediction(result: AuditResult, place: int, level: float, random_: random.Random, calibrated: bool) -> Prediction:
    row = result.samples[place]
    scale = 1.0 if level == 0.01 else 1.6
    proxies = {}
    for name, estimate in row.proxies.items():
        if estimate.value is None or name.endswith("_min"):
            continue
        error = name.endswith(("rmse", "i2f"))
        proxies[name] = Estimate(value=estimate.value * scale if error else estimate.value / scale, status="exact")
    value = (row.proxies["map_rmse"].value or 0.0) * random_.uniform(0.7, 0.95)
    value = value if level == 0.01 else 0.45 * PRIOR_RMSE + 0.5 * value
    proxies["predicted_rmse"] = Estimate(value=value, low=0.9 * value, high=1.1 * value, status="exact")
    proxies["map_rmse"] = Estimate(value=value, low=0.93 * value, high=1.08 * value, status="bracketed")
    chance = 1 / (1 + math.exp(60 * (value - TOLERANCE)))
    return Prediction(
        noise_std=level,
        sample_id=row.id,
        proxies=proxies,
        success_probability=[SuccessProbability(tolerance=TOLERANCE, probability=chance, status="exact")],
        calibrated={"map_rmse": Estimate(value=value, low=0.88 * value, high=1.4 * value, status="exact")}
        if calibrated
        else {},
        seconds=0.21,
    )


def _attack(prediction: Prediction, name: str, random_: random.Random, broken: bool, png: str | None) -> AttackRow:
    typical, spread, seconds = ATTACKS[name]
    predicted = prediction.proxies["map_rmse"].value or 0.0
    rmse = min(0.6, predicted * max(0.7, random_.gauss(typical, spread))) if not broken else random_.uniform(0.35, 0.5)
    failed = name == "cosine-tv" and prediction.sample_id == "3"
    metrics = {
        "mse": rmse**2,
        "rmse": rmse,
        "psnr": -20 * math.log10(rmse),
        "ssim": 1 / (1 + 5 * rmse * random_.uniform(0.9, 1.1)),
        "lpips": None,
        "feature_mse": 4 * rmse**2 * random_.uniform(0.8, 1.2),
    }
    return AttackRow(
        attack=name,
        sample_id=prediction.sample_id,
        noise_std=prediction.noise_std,
        oracle_start=name == ORACLE,
        label_known=True,
        status="failed" if failed else "converged" if rmse < 1.2 * predicted else "not_converged",
        reason="the objective became infinite" if failed else None,
        metrics=dict.fromkeys(metrics) if failed else metrics,
        objective=None if failed else random_.uniform(300, 900),
        steps=40,
        restarts=1 if name == "gauss-newton" else 3,
        seconds=seconds * random_.uniform(0.9, 1.1),
        image_png=png,
    )


def _control(status: Literal["passed", "failed", "skipped"]) -> Control:
    if status == "skipped":
        return Control(status=status, rmse=None, reason="--no-control was given")
    rmse = 0.0004 if status == "passed" else 0.31
    return Control(status=status, rmse=rmse, limit=0.05, attack="gauss-newton", num_samples=4)


def attack_study(
    result: AuditResult,
    *,
    control: Literal["passed", "failed", "skipped"] = "passed",
    calibrated: bool = False,
    png: str | None = None,
    seed: int = 0,
) -> VerifyStudy:
    """A study of an audit whose noise std is 0.01; a failed control comes with attacks that reach nothing."""
    random_ = random.Random(seed)
    count = len(result.samples)
    predictions = [
        _prediction(result, place, level, random_, calibrated) for level in (0.01, 0.1) for place in range(count)
    ]
    broken = control == "failed"
    attacks = [_attack(one, name, random_, broken, png) for one in predictions for name in ATTACKS]
    words = [*result.proxies, PREDICTED_RMSE]
    pairs = {"l2": ("lavp_l2_max", "lavp_cosine_max"), "cosine-tv": ("lavp_cosine_max", "lavp_l2_max")}
    return VerifyStudy(
        control=_control(control),
        knowledge=AttackerKnowledge(
            labels_known=True,
            batch_norm_statistics_known=True,
            rest_of_batch_known=True,
            prior="class prior of 10,000 images",
            input_range_known=False,
        ),
        attacks=attacks,
        agreement=agreement_rows(
            attacks,
            predictions,
            higher_is_better={"psnr", "ssim"},
            predicts_rmse={info.id for info in words if info.predicts_rmse},
            num_resamples=100,
        ),
        predictions=predictions,
        prior_only=[
            PriorOnly(sample_id=row.id, metrics={"rmse": PRIOR_RMSE * random_.uniform(0.85, 1.1)})
            for row in result.samples
        ],
        reliability=reliability_records(attacks, predictions),
        loss_comparisons=loss_comparisons(attacks, predictions, pairs),
        timings=timings(attacks, predictions),
        metric_notes={"lpips": "the weights are not in the torch hub cache"},
        metric_info=[METRICS[name].info() for name in ("rmse", "mse", "psnr", "ssim", "lpips", "feature_mse")],
        prediction_info=words,
        attack_settings={"gauss-newton": {"steps": 40, "products": 60, "damping": 1e-3}, "l2": {"learning_rate": 0.1}},
    )


def without_noise(result: AuditResult, level: float = 0.1, **options: object) -> AuditResult:
    """An attacked audit one of whose levels carries no noise: its records claim what nothing can foresee."""
    attacked = with_attacks(result, **options)
    study = raw_study(attacked, "verify")
    for key in ("attacks", "predictions", "agreement", "reliability", "timings", "loss_comparisons"):
        study[key] = [row | ({"noise_std": 0.0} if row["noise_std"] == level else {}) for row in study[key]]
    return with_raw_study(attacked, "verify", study)


def raw_study(result: AuditResult, name: str) -> dict[str, Any]:
    """A study as it stands in audit.json."""
    study: dict[str, Any] = result.studies.model_dump(mode="json")[name]
    return study


def with_raw_study(result: AuditResult, name: str, study: object) -> AuditResult:
    """The audit as it is read with something else in a study's place."""
    studies = Studies.model_validate({**result.studies.model_dump(mode="json"), name: study})
    return result.model_copy(update={"studies": studies})


def with_attacks(result: AuditResult, **options: object) -> AuditResult:
    """The audit with an attack study, as it stands in audit.json."""
    return result.with_study(attack_study(result, **options))  # type: ignore[arg-type]


def calibration() -> CalibrationInfo:
    return CalibrationInfo(
        name="mnist-calibration.npz",
        sha256="b1" * 32,
        coverage=0.9,
        num_samples=60,
        noise_std=0.01,
        prior="class",
        low_factor=0.88,
        high_factor=1.4,
        attacks=["gauss-newton", "l2"],
    )
