"""riskaudit: audit what a gradient gives away, before it is sent.

    checkpoint = riskaudit.load_checkpoint("lenet.pt")
    samples = riskaudit.load_samples("mnist.npz", channels=checkpoint.input_channels, limit=32)
    result = riskaudit.audit(checkpoint, samples, release="clip:1.0,gaussian:0.01")
    result.save("audit.json")

Names are imported on first use: ``import riskaudit`` and rendering a report don't load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from riskaudit.version import __version__

if TYPE_CHECKING:
    from riskaudit.audit import AuditSettings, audit
    from riskaudit.errors import RiskauditError
    from riskaudit.inputs import Checkpoint, Loss, Samples, load_checkpoint, load_loss, load_samples
    from riskaudit.policy import Policy
    from riskaudit.priors import Prior, fit_prior, load_prior, save_prior
    from riskaudit.report import render
    from riskaudit.results import AuditResult, Calibration
    from riskaudit.studies.attacking import AttackSettings
    from riskaudit.studies.calibrate.run import calibrate
    from riskaudit.studies.verify.run import verify

_HOMES = {
    "AttackSettings": "riskaudit.studies.attacking",
    "AuditResult": "riskaudit.results",
    "AuditSettings": "riskaudit.audit",
    "Calibration": "riskaudit.results",
    "Checkpoint": "riskaudit.inputs",
    "Loss": "riskaudit.inputs",
    "Policy": "riskaudit.policy",
    "Prior": "riskaudit.priors",
    "RiskauditError": "riskaudit.errors",
    "Samples": "riskaudit.inputs",
    "audit": "riskaudit.audit",
    "calibrate": "riskaudit.studies.calibrate.run",
    "fit_prior": "riskaudit.priors",
    "load_checkpoint": "riskaudit.inputs",
    "load_loss": "riskaudit.inputs",
    "load_prior": "riskaudit.priors",
    "load_samples": "riskaudit.inputs",
    "render": "riskaudit.report",
    "save_prior": "riskaudit.priors",
    "verify": "riskaudit.studies.verify.run",
}

__all__ = [
    "AttackSettings",
    "AuditResult",
    "AuditSettings",
    "Calibration",
    "Checkpoint",
    "Loss",
    "Policy",
    "Prior",
    "RiskauditError",
    "Samples",
    "__version__",
    "audit",
    "calibrate",
    "fit_prior",
    "load_checkpoint",
    "load_loss",
    "load_prior",
    "load_samples",
    "render",
    "save_prior",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'riskaudit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
