"""Synthetic audits for the report tests: realistic numbers (lenet / MNIST), no torch."""

from __future__ import annotations

import base64
import io
import math
import random
from collections.abc import Callable
from typing import Any

from attack_cases import calibration, with_attacks, with_raw_study
from report_hostile import HOSTILE

from riskaudit.report.recomputation import recompute
from riskaudit.results import (
    AuditResult,
    CheckpointInfo,
    ClassRow,
    ClassTest,
    Cost,
    DataInfo,
    Estimate,
    Fairness,
    GroupStatistic,
    Inequality,
    NoiseCurvePoint,
    NoiseInfo,
    NoiseTarget,
    PolicyOutcome,
    PriorInfo,
    ProxyInfo,
    ReleaseInfo,
    SampleRow,
    Settings,
    SolverEvidence,
    Studies,
    ThreatModel,
    Tool,
)

PROXIES = {
    "gradient_norm": ("Gradient norm", "gradient units", "baseline", "higher"),
    "i2f": ("I2F", "data units per coordinate", "Zhang et al., NeurIPS 2023, Eq. 3-6", "lower"),
    "i2f_lower_bound": ("I2F lower bound", "data units per coordinate", "Zhang et al., NeurIPS 2023, Eq. 5", "lower"),
    "expected_rmse": ("Expected RMSE", "data units per coordinate", "Cramer-Rao bound", "lower"),
    "posterior_rmse": ("Posterior error", "data units per coordinate", "Balunovic et al., ICLR 2022", "lower"),
    "revealed_fraction": (
        "Revealed fraction",
        "share of the input's dimension",
        "Balunovic et al., ICLR 2022",
        "higher",
    ),
    "map_rmse": ("MAP RMSE", "data units per coordinate", "derived from Balunovic et al., ICLR 2022", "lower"),
    "map_i2f": ("MAP I2F", "data units per coordinate", "derived from Zhang et al., NeurIPS 2023", "lower"),
    "lavp_l2_max": ("LAVP L2, largest", "loss per squared data unit", "Hong et al., AAAI 2024", "higher"),
    "lavp_l2_min": ("LAVP L2, smallest", "loss per squared data unit", "Hong et al., AAAI 2024", "higher"),
    "lavp_cosine_max": ("LAVP cosine, largest", "per squared data unit", "Hong et al., AAAI 2024", "higher"),
    "lavp_cosine_min": ("LAVP cosine, smallest", "per squared data unit", "Hong et al., AAAI 2024", "higher"),
}
NEEDS_SPECTRUM = {
    "expected_rmse",
    "posterior_rmse",
    "revealed_fraction",
    "map_rmse",
    "map_i2f",
    "lavp_l2_min",
    "lavp_cosine_min",
}
PRIOR_STD = 0.31


def _estimate(value: float | None, status: str = "exact", spread: float = 0.0) -> Estimate:
    if value is None:
        return Estimate(value=None, status=status)  # type: ignore[arg-type]
    low, high = (value * (1 - spread), value * (1 + spread)) if spread else (None, None)
    return Estimate(value=value, low=low, high=high, status=status)  # type: ignore[arg-type]


def _sample(random_: random.Random, index: int, target: int, spread: float) -> SampleRow:
    revealed = min(0.93, max(0.04, random_.betavariate(2.2, 2.4) * 0.8 + 0.025 * target))
    rmse = PRIOR_STD * math.sqrt(1 - revealed)
    i2f = 0.012 + 0.3 * (1 - revealed) ** 2 * random_.uniform(0.8, 1.2)
    largest = 2 + 75 * revealed * random_.uniform(0.6, 1.1)
    values = {
        "gradient_norm": (5 + 35 * revealed * random_.uniform(0.6, 1.1), "exact", 0.0),
        "i2f": (i2f, "converged", 0.0),
        "i2f_lower_bound": (10 ** random_.uniform(-5, -3), "exact", 0.0),
        "expected_rmse": (None, "singular", 0.0),
        "posterior_rmse": (rmse, "exact", 0.0),
        "revealed_fraction": (revealed, "exact", spread),
        "map_rmse": (rmse * random_.uniform(0.9, 1.1), "exact", 0.0),
        "map_i2f": (rmse * random_.uniform(0.9, 1.1), "exact", 0.0),
        "lavp_l2_max": (largest, "converged", 0.02),
        "lavp_l2_min": (random_.uniform(0.5, 2) * 1e-8, "exact", 0.0),
        "lavp_cosine_max": (largest / 400, "converged", 0.0),
        "lavp_cosine_min": (random_.uniform(0.5, 2) * 1e-10, "exact", 0.0),
    }
    most = revealed * (1 + spread)
    verdict = "high" if most > 0.5 else "medium" if most >= 0.1 else "low"
    proxies = {proxy: _estimate(*value) for proxy, value in values.items()}
    if spread:
        ends = [PRIOR_STD * math.sqrt(1 - end) for end in (most, revealed * (1 - spread))]
        proxies["posterior_rmse"] = Estimate(value=rmse, low=ends[0], high=ends[1], status="exact")
    return SampleRow(
        id=str(index),
        target=target,
        loss=random_.uniform(0.2, 2.6),
        status="exact",
        proxies=proxies,
        noise_std_for_target=NoiseTarget(target_rmse=0.2, std=0.002 + 0.03 * revealed**2),
        verdict=verdict,  # type: ignore[arg-type]
        solvers={
            "spectrum": SolverEvidence(method="dense", status="exact", residual=3e-14, matvecs=784),
            "inverse": SolverEvidence(method="cg", status="converged", residual=8.1e-9, matvecs=61),
        },
    )


def _classes(samples: list[SampleRow], names: list[str]) -> list[ClassRow]:
    rows = []
    for target in sorted({row.target for row in samples if isinstance(row.target, int)}):
        members = [row for row in samples if row.target == target]
        proxies = {}
        for proxy in PROXIES:
            values = [e.value for row in members if (e := row.proxies.get(proxy)) and e.value is not None]
            if not values:
                continue
            mean = sum(values) / len(values)
            std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else None
            enough = len(values) >= 3 and std is not None
            half = 1.96 * std / math.sqrt(len(values)) if enough and std is not None else 0.0
            proxies[proxy] = GroupStatistic(
                mean=mean,
                min=min(values),
                max=max(values),
                std=std,
                low=max(0.0, mean - half) if enough else None,
                high=mean + half if enough else None,
                confidence=0.95 if enough else None,
                num_samples=len(values),
                note=None if enough else "too few samples",
            )
        name = names[target] if target < len(names) else str(target)
        rows.append(ClassRow(target=target, name=name, num_samples=len(members), proxies=proxies))
    return rows


def _fairness(samples: list[SampleRow], few: bool) -> Fairness:
    proxies = {}
    for proxy, (_, _, _, riskier) in PROXIES.items():
        pairs = [(e.value, row) for row in samples if (e := row.proxies.get(proxy)) and e.value is not None]
        if not pairs:
            continue
        pairs.sort(key=lambda pair: pair[0], reverse=riskier == "higher")
        values = [value for value, _ in pairs]
        test = (
            ClassTest(status="not_applicable", note="too few samples")
            if few
            else ClassTest(statistic=11.2, p_value=0.031, status="exact")
        )
        target = pairs[0][1].target
        proxies[proxy] = Inequality(
            gini=0.21,
            max_min_ratio=max(values) / min(values),
            kruskal_wallis=test,
            worst_class=target if isinstance(target, int) else None,
            worst_samples=[row.id for _, row in pairs[:3]],
        )
    return Fairness(proxies=proxies)


def build(
    num_samples: int = 24, num_classes: int = 5, *, seed: int = 0, spread: float = 0.04, **changes: Any
) -> AuditResult:
    """A defended dense audit; ``changes`` replace fields of the result."""
    random_ = random.Random(seed)
    samples = [_sample(random_, index, index % num_classes, spread) for index in range(num_samples)]
    names = [str(digit) for digit in range(10)]
    curve = []
    for step in range(-8, 1):
        std = 10 ** (step / 2)
        mean, worst = 1 / (1 + (std / 0.012) ** 1.1), 1 / (1 + (std / 0.05) ** 1.3)
        curve.append(
            NoiseCurvePoint(
                std=std,
                revealed_fraction_mean=mean,
                revealed_fraction_max=worst,
                posterior_rmse_mean=PRIOR_STD * math.sqrt(1 - mean),
                posterior_rmse_min=PRIOR_STD * math.sqrt(1 - worst),
            )
        )
    fields: dict[str, Any] = {
        "tool": Tool(version="0.1.0"),
        "created_at": "2026-03-04T10:20:30Z",
        "command": 'riskaudit scan lenet.pt --data mnist.npz --release "gaussian:0.01" --seed 0',
        "versions": {"python": "3.11.9", "torch": "2.13.0", "riskaudit": "0.1.0"},
        "checkpoint": CheckpointInfo(name="lenet.pt", sha256="3f" * 32, architecture="lenet", num_parameters=17038),
        "data": DataInfo(
            name="mnist.npz",
            sha256="a7" * 32,
            num_samples=num_samples,
            input_shape=[1, 28, 28],
            input_range=[0.0, 1.0],
            class_names=names,
        ),
        "release": ReleaseInfo(
            steps=["gradient", "gaussian"],
            spec="gaussian:0.01",
            noise=NoiseInfo(law="gaussian", std=0.01),
            defended=True,
        ),
        "prior": PriorInfo(kind="isotropic", mean=0.13, std=PRIOR_STD),
        "settings": Settings(
            seed=0,
            device="cpu",
            dtype="float64",
            solver="dense",
            inverse="dense",
            target_rmse=0.2,
            solver_reason="d = 784 is small enough for the whole spectrum",
            batch_size=8,
            confidence=0.95,
        ),
        "cost": Cost(seconds=12.4, matvecs=784 * num_samples, peak_memory_bytes=412 * 2**20),
        "proxies": [
            ProxyInfo(
                id=key,
                title=title,
                short_title=title,
                units=units,
                source=source,
                riskier=riskier,  # type: ignore[arg-type]
                summary=f"{title} of a sample.",
                formula=f"formula of {key}",
                order=10 * place,
                predicts_rmse=units.startswith("data units") and key != "i2f_lower_bound",
            )
            for place, (key, (title, units, source, riskier)) in enumerate(PROXIES.items())
        ],
        "samples": samples,
        "classes": _classes(samples, names),
        "fairness": _fairness(samples, num_samples < 10),
        "noise_curve": curve,
    }
    return AuditResult(**(fields | changes))


def _undefended() -> AuditResult:
    return build(
        8,
        release=ReleaseInfo(steps=["gradient"], noise=None, defended=False, reference_noise_std=0.001),
        command="riskaudit scan lenet.pt --data mnist.npz",
        spread=0.0,
    )


def _lanczos() -> AuditResult:
    reason = "needs the whole spectrum (d = 150,528): run with --solver dense or use fewer pixels"
    base = build(12)
    samples = [
        row.model_copy(
            update={
                "proxies": {
                    proxy: _estimate(None, "not_applicable") if proxy in NEEDS_SPECTRUM else estimate
                    for proxy, estimate in row.proxies.items()
                },
                "verdict": "not_assessed",
                "status": "converged",
                "reason": reason,
                "noise_std_for_target": None,
            }
        )
        for row in base.samples
    ]
    proxies = [
        info.model_copy(update={"reason": reason}) if info.id in NEEDS_SPECTRUM else info for info in base.proxies
    ]
    settings = base.settings.model_copy(update={"solver": "lanczos", "inverse": "cg", "solver_reason": "d is large"})
    return build(
        12,
        samples=samples,
        proxies=proxies,
        classes=_classes(samples, []),
        noise_curve=[],
        settings=settings,
        fairness=_fairness(samples, False),
    )


def _failed() -> AuditResult:
    base = build(9)
    failed = SampleRow(
        id="9",
        target=None,
        loss=None,
        status="failed",
        reason="the loss is not finite",
        proxies={},
        verdict="not_assessed",
    )
    doubtful = base.samples[0].model_copy(
        update={
            "status": "not_converged",
            "verdict": "not_assessed",
            "reason": "did not reach 1e-8 in 200 products",
            "proxies": {
                proxy: _estimate(e.value, "not_converged" if e.value else "singular")
                for proxy, e in base.samples[0].proxies.items()
            },
        }
    )
    bracketed = base.samples[1].model_copy(
        update={
            "proxies": base.samples[1].proxies
            | {
                "i2f": Estimate(value=0.1, low=0.05, high=0.2, status="bracketed"),
                "map_rmse": Estimate(value=None, status="failed"),
            }
        }
    )
    samples = [doubtful, bracketed, *base.samples[2:], failed]
    return build(9, samples=samples, warnings=["one sample has a loss that is not finite"])


def _hostile() -> AuditResult:
    text = iter(HOSTILE * 8)
    base = build(14, len(HOSTILE))
    samples = [
        row.model_copy(update={"id": f"{next(text)}{place}" if place > 10 else next(text), "reason": next(text)})
        for place, row in enumerate(base.samples)
    ]
    names = list(HOSTILE)
    everything = " ".join(HOSTILE)
    return build(
        14,
        samples=samples,
        classes=_classes(samples, names),
        data=base.data.model_copy(update={"name": HOSTILE[0], "class_names": names}),
        checkpoint=base.checkpoint.model_copy(update={"name": HOSTILE[1], "architecture": HOSTILE[8]}),
        release=base.release.model_copy(update={"spec": HOSTILE[3], "steps": list(HOSTILE[:3])}),
        threat_model=ThreatModel(evaluation="diagnostic", reason=everything),
        prior=base.prior.model_copy(update={"kind": HOSTILE[2]}),
        settings=base.settings.model_copy(
            update={"solver": HOSTILE[0], "solver_reason": everything, "loss": HOSTILE[5]}
        ),
        proxies=[
            info.model_copy(update={"summary": everything, "reason": HOSTILE[1], "units": HOSTILE[3]})
            for info in base.proxies
        ],
        policy=PolicyOutcome(
            decision="block", reasons=list(HOSTILE), limits={HOSTILE[0]: 1.0}, source=HOSTILE[1], exceeded=list(HOSTILE)
        ),
        studies=Studies.model_validate({HOSTILE[0]: {HOSTILE[1]: HOSTILE[2]}}),
        versions={HOSTILE[0]: HOSTILE[1]},
        command=everything,
        created_at=HOSTILE[0],
        tool=Tool(name=HOSTILE[0], version=HOSTILE[1]),
        warnings=list(HOSTILE),
    )


def _png(seed: int) -> str:
    from PIL import Image

    random_ = random.Random(seed)
    stream = io.BytesIO()
    Image.frombytes("L", (28, 28), bytes(random_.randrange(256) for _ in range(784))).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _shown() -> AuditResult:
    base = build(8)
    samples = [row.model_copy(update={"image_png": _png(place)}) for place, row in enumerate(base.samples)]
    samples[3] = samples[3].model_copy(update={"image_png": "not base64"})
    return build(8, samples=samples)


def _policy(decision: str) -> AuditResult:
    base = build(16)
    over = [row.id for row in base.samples if row.verdict == "high"]
    reasons = {
        "block": [f"{len(over)} of 16 samples reveal more than 0.5", "sample 4 reveals 0.81, the most"],
        "warn": ["1 sample did not converge"],
        "allow": ["all 16 samples reveal at most 0.99"],
    }[decision]
    return build(
        16,
        policy=PolicyOutcome(
            decision=decision,
            reasons=reasons,
            limits={"max_revealed": 0.5 if decision == "block" else 0.99},  # type: ignore[arg-type]
            source="command line",
            exceeded=over if decision == "block" else [],
        ),
    )


def _hostile_attacks() -> AuditResult:
    base = with_attacks(build(5))
    text = iter(HOSTILE * 40)

    def replaced(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: replaced(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [replaced(inner, key) for inner in value]
        return HOSTILE[sum(map(ord, value)) % 9] if key in {"attack", "prior", "proxy", "metric", "own"} else value

    study = replaced(base.studies.model_dump(mode="json")["verify"])
    study["control"] |= {"reason": next(text), "attack": next(text)}
    study |= {"notes": list(HOSTILE), "metric_notes": {HOSTILE[0]: HOSTILE[1]}, "complete": False}
    study["attack_settings"] = {HOSTILE[3]: {HOSTILE[4]: HOSTILE[5]}}
    for row in study["attacks"]:
        row |= {"reason": next(text) if row["status"] == "failed" else None}
    named = calibration().model_copy(update={"name": HOSTILE[0], "prior": HOSTILE[2], "attacks": list(HOSTILE)})
    return with_raw_study(base, "verify", study).model_copy(update={"calibration": named})


def _attacked_and_shown() -> AuditResult:
    base = build(6)
    samples = [row.model_copy(update={"image_png": _png(place)}) for place, row in enumerate(base.samples)]
    return with_attacks(build(6, samples=samples), png=_png(99))


CASES: dict[str, Callable[[], AuditResult]] = {
    "defended": build,
    "undefended": lambda: recompute(_undefended())[0],
    "lanczos": _lanczos,
    "failed": lambda: recompute(_failed())[0],
    "one": lambda: build(1, 1),
    "many": lambda: build(300, 10),
    "hostile": _hostile,
    "shown": _shown,
    "exceeded": lambda: _policy("block"),
    "within": lambda: _policy("allow"),
    "warned": lambda: _policy("warn"),
    "attacked": lambda: with_attacks(build()),
    "control-failed": lambda: with_attacks(build(), control="failed"),
    "control-skipped": lambda: with_attacks(build(6), control="skipped"),
    "calibrated": lambda: with_attacks(build(calibration=calibration()), calibrated=True),
    "attacked-hostile": _hostile_attacks,
    "attacked-shown": _attacked_and_shown,
    "laplace": lambda: build(
        8,
        release=ReleaseInfo(
            steps=["gradient", "clip", "laplace"],
            spec="clip:1.0,laplace:0.01",
            noise=NoiseInfo(law="laplace", std=0.01),
            defended=True,
        ),
    ),
}
