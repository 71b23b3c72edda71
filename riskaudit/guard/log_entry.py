"""A decision as a line of the log: numbers, digests and sentences, never an input."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import torch

from riskaudit.guard.decision import Decision
from riskaudit.policy import Exposure, Range
from riskaudit.version import __version__


def log_entry(decision: Decision, **settings: object) -> dict[str, Any]:
    """What the log gets of a decision.

    Args:
        decision: to be logged.
        settings: of the guard, and where its ledger stands, under the names that the line has them by.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "round": decision.round,
        "decision": decision.action,
        "reasons": decision.reasons,
        "warnings": decision.warnings,
        **({"note": decision.note} if decision.note else {}),
        **settings,
        "samples": [_numbers(one) for one in decision.exposures],
        "noise_std": decision.noise_std,
        "dropped": decision.dropped,
        "seconds": round(decision.seconds, 6),
        "products": decision.products,
        "model_sha256": decision.model_digest,
        "update_sha256": decision.update_digest,
        "versions": {"riskaudit": __version__, "torch": str(torch.__version__)},
    }


def _numbers(one: Exposure) -> dict[str, Any]:
    return {"id": one.id, "revealed": _ends(one.revealed), "rmse": _ends(one.rmse), "total": _ends(one.total_revealed)}


def _ends(found: Range | None) -> list[float] | None:
    if found is None or not (math.isfinite(found.low) and math.isfinite(found.high)):
        return None
    return [found.low, found.high]
