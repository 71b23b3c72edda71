"""The policy's limits as a command line gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riskaudit.errors import SettingsError
from riskaudit.policy import Policy, policy_table
from riskaudit.results import AuditResult, PolicyOutcome


class Limits:
    """The policy's limits and where they came from, read before the audit begins.

    Limit by limit, an option on the command line wins over ``--policy``, and that over the policy table of
    the configuration file.
    """

    def __init__(
        self, max_revealed: float | None, min_rmse: float | None, policy: Path | None, config: Path | None
    ) -> None:
        limits: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for file in (config, policy):
            table = policy_table(file, required=file is policy) if file is not None else None
            if file is not None and table:
                limits |= table
                sources |= dict.fromkeys(table, file.name)
        for name, value in (("max_revealed", max_revealed), ("min_rmse", min_rmse)):
            if value is not None:
                limits[name] = value
                sources[name] = f"--{name.replace('_', '-')}"
        self.policy = Policy.from_mapping(limits)
        self.source = ", ".join(dict.fromkeys(sources.values()))
        if policy is not None and not self.policy.limits:
            raise SettingsError(f"expected policy limits in {policy}, found none")

    def decide(self, result: AuditResult) -> PolicyOutcome | None:
        """The policy's outcome, None where no limit was given."""
        return self.policy.decide(result, self.source) if self.policy.limits else None
