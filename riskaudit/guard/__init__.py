"""From an audit to a decision."""

from riskaudit.guard.policy import Policy

__all__ = ["Policy"]
