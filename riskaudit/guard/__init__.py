"""The last thing before an upload: audit the local batch, then let the update pass, change it, or withhold it.

    guard = Guard(model, loss_fn, Policy(max_revealed=0.2), prior_std=0.3, release="gaussian:0.01", local_steps=1)
    decision = guard.review((inputs, targets), update)
    if decision.update is not None:
        send(decision.update)

Names are imported on first use: ledgers and logs are read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from riskaudit.guard.decision import Action, Decision
    from riskaudit.guard.guard import Guard
    from riskaudit.guard.ledger import Ledger
    from riskaudit.guard.log import AuditLog
    from riskaudit.guard.noise.randomness import SecureNoise
    from riskaudit.guard.recording import Recording
    from riskaudit.policy import Policy

_HOMES = {
    "Action": "riskaudit.guard.decision",
    "AuditLog": "riskaudit.guard.log",
    "Decision": "riskaudit.guard.decision",
    "Guard": "riskaudit.guard.guard",
    "Ledger": "riskaudit.guard.ledger",
    "Policy": "riskaudit.policy",
    "Recording": "riskaudit.guard.recording",
    "SecureNoise": "riskaudit.guard.noise.randomness",
}

__all__ = ["Action", "AuditLog", "Decision", "Guard", "Ledger", "Policy", "Recording", "SecureNoise"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
