"""``riskaudit study fairness``: an audit, attacked where asked for, and on whom its leak falls.

`fairness` itself is a pure function of an audit and needs no model; it lives in `riskaudit.studies.fairness.exposure`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.results import AuditResult
from riskaudit.studies.base import StudyRun
from riskaudit.studies.fairness.exposure import fairness
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.verify.record import VerifyStudy
from riskaudit.studies.verify.run import verify

__all__ = ["fairness", "fairness_study", "with_fairness"]


def fairness_study(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    settings: AuditSettings | None = None,
    run: StudyRun | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    groups_name: str | None = None,
) -> AuditResult:
    """Audit, attack where asked for, and compare samples, classes and groups.

    Returns:
        The audit with ``studies.fairness``, and ``studies.verify`` where attacks ran.

    Raises:
        RiskauditError: as `audit`.
        KeyboardInterrupt: attacks were interrupted; the log keeps the finished ones.
    """
    run = run or StudyRun()
    if not run.attacks:
        result = audit(
            checkpoint, samples, settings, show_samples=run.show_samples, command=run.command, progress=run.progress,
            workers=run.workers,
        )  # fmt: skip
        return with_fairness(result, groups, groups_name)
    result = verify(checkpoint, samples, settings, AttackSettings(steps=run.attack_steps), run)
    study = result.studies.get(VerifyStudy)
    if study is None or not study.complete:
        raise KeyboardInterrupt
    return with_fairness(result, groups, groups_name)


def with_fairness(
    result: AuditResult, groups: Mapping[str, str] | None = None, groups_name: str | None = None
) -> AuditResult:
    """An audit with its fairness study."""
    return result.with_study(fairness(result, groups, groups_name=groups_name))
