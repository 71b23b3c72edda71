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

from riskaudit.version import __version__ as __version__

if TYPE_CHECKING:
    from riskaudit.audit.audit import audit as audit
    from riskaudit.audit.inspection import inspect_received as inspect_received
    from riskaudit.audit.settings import AuditSettings as AuditSettings
    from riskaudit.errors import RiskauditError as RiskauditError
    from riskaudit.guard.attestation.attest import attest as attest
    from riskaudit.inputs import Checkpoint as Checkpoint
    from riskaudit.inputs import Loss as Loss
    from riskaudit.inputs import Samples as Samples
    from riskaudit.inputs import infer_encoding as infer_encoding
    from riskaudit.inputs import load_checkpoint as load_checkpoint
    from riskaudit.inputs import load_loss as load_loss
    from riskaudit.inputs import load_samples as load_samples
    from riskaudit.policy import Policy as Policy
    from riskaudit.priors import Prior as Prior
    from riskaudit.priors import fit_prior as fit_prior
    from riskaudit.priors import load_prior as load_prior
    from riskaudit.priors import save_prior as save_prior
    from riskaudit.report import render as render
    from riskaudit.results import AuditResult as AuditResult
    from riskaudit.results import Calibration as Calibration
    from riskaudit.results.attestation import Attestation as Attestation
    from riskaudit.results.inspection import InspectionResult as InspectionResult
    from riskaudit.runs.run import Run as Run
    from riskaudit.studies.calibrate.run import calibrate as calibrate
    from riskaudit.studies.forecast import foretell as foretell
    from riskaudit.studies.settings import AttackSettings as AttackSettings
    from riskaudit.studies.verify.run import verify as verify
    from riskaudit.tables import save_encoding as save_encoding

_MODULES = {
    "riskaudit.audit.audit": ["audit"],
    "riskaudit.audit.inspection": ["inspect_received"],
    "riskaudit.audit.settings": ["AuditSettings"],
    "riskaudit.errors": ["RiskauditError"],
    "riskaudit.guard.attestation.attest": ["attest"],
    "riskaudit.inputs": [
        "Checkpoint",
        "Loss",
        "Samples",
        "infer_encoding",
        "load_checkpoint",
        "load_loss",
        "load_samples",
    ],
    "riskaudit.policy": ["Policy"],
    "riskaudit.priors": ["Prior", "fit_prior", "load_prior", "save_prior"],
    "riskaudit.report": ["render"],
    "riskaudit.results": ["AuditResult", "Calibration"],
    "riskaudit.results.attestation": ["Attestation"],
    "riskaudit.results.inspection": ["InspectionResult"],
    "riskaudit.runs.run": ["Run"],
    "riskaudit.studies.calibrate.run": ["calibrate"],
    "riskaudit.studies.forecast": ["foretell"],
    "riskaudit.studies.settings": ["AttackSettings"],
    "riskaudit.studies.verify.run": ["verify"],
    "riskaudit.tables": ["save_encoding"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604 (they are strings)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'riskaudit' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
