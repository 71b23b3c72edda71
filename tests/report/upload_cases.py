"""Audits of uploads of several samples: informed and outsider numbers, uploads, classmates; no torch."""

from __future__ import annotations

import math
from typing import Any

from report_cases import PRIOR_STD, build

from riskaudit.report.recomputation import recompute
from riskaudit.results import AuditResult, Estimate, NoiseInfo, ProxyInfo, ReleaseInfo, SampleRow
from riskaudit.results.words import COMPARED
from riskaudit.statistics.summaries import class_rows, inequalities

SIZE = 4
# What the outsider is left of the informed attacker's revealed fraction, by the number of classmates.
CROWD = {0: 0.9, 1: 0.5}
TITLES = {"informed_revealed_fraction": "Informed revealed fraction", "informed_posterior_rmse": "Informed error"}


def revealed_pair(informed: float, outsider: float, spread: float = 0.0) -> dict[str, Estimate]:
    """Both attackers' headline numbers, with the errors that belong to them."""
    pairs = {
        ("revealed_fraction", "posterior_rmse"): outsider,
        ("informed_revealed_fraction", "informed_posterior_rmse"): informed,
    }
    estimates = {}
    for (share_id, error_id), value in pairs.items():
        ends = (value * (1 - spread), min(1.0, value * (1 + spread)))
        shares, errors = (value, *ends), [PRIOR_STD * math.sqrt(1 - end) for end in (value, *reversed(ends))]
        for name, (middle, low, high) in ((share_id, shares), (error_id, errors)):
            estimates[name] = (
                Estimate(value=middle, low=low, high=high, status="bracketed")
                if spread
                else Estimate(value=middle, status="exact")
            )
    return estimates


def _row(row: SampleRow, place: int, targets: list[int], spread: float) -> SampleRow:
    first = place - place % SIZE
    classmates = targets[first : first + SIZE].count(targets[place]) - 1
    informed = row.proxies["revealed_fraction"].value
    assert informed is not None
    pair = revealed_pair(informed, informed * CROWD[classmates], spread)
    return row.model_copy(update={"upload": place // SIZE, "classmates": classmates, "proxies": row.proxies | pair})


def uploads(
    num_samples: int = 12,
    *,
    spec: str = "gradient,mean:4,gaussian:0.01",
    attacker: str = "informed",
    spread: float = 0.0,
    release: dict[str, Any] | None = None,
    **changes: Any,
) -> AuditResult:
    """An audit of uploads of `SIZE` samples, with the conclusions that its numbers have."""
    base = build(num_samples, 3, spread=0.0)
    targets = [row.target for row in base.samples]
    assert all(isinstance(target, int) for target in targets)
    rows = [_row(row, place, targets, spread) for place, row in enumerate(base.samples)]  # type: ignore[arg-type]
    infos = [
        ProxyInfo(id=name, title=title, units="", source="derived", riskier=COMPARED[name], summary=title, order=5)
        for name, title in TITLES.items()
    ]
    described = {
        "steps": [part.split(":")[0] for part in spec.split(",")],
        "spec": spec,
        "noise": NoiseInfo(law="gaussian", std=0.01),
        "defended": True,
        "coupling": "joint",
        "upload_size": SIZE,
        "attacker": attacker,
        "num_entries": 2000,
    }
    described |= release or {}
    fields = {
        "samples": rows,
        "classes": class_rows(rows, base.data.class_names, 0),
        "fairness": inequalities(rows),
        "release": ReleaseInfo(**described),
        "proxies": [*base.proxies, *infos],
    }
    return recompute(build(num_samples, 3, **(fields | changes)))[0]
