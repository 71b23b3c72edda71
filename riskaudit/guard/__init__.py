"""The last thing before an upload: audit the local batch, then let the update pass, change it, or withhold it.

guard = Guard(model, loss_fn, Policy(max_revealed=0.2), prior_std=0.3, release="gaussian:0.01")
decision = guard.review((inputs, targets), update)
if decision.update is not None:
send(decision.update)
"""

from riskaudit.guard.decision import Action, Decision
from riskaudit.guard.guard import Guard
from riskaudit.guard.ledger import Ledger
from riskaudit.guard.log import AuditLog
from riskaudit.policy import Policy

__all__ = ["Action", "AuditLog", "Decision", "Guard", "Ledger", "Policy"]
