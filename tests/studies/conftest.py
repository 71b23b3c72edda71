"""One small verify study that several tests look at."""

from __future__ import annotations

import pytest
from study_cases import NOISE, digits, network

from riskaudit.audit import AuditSettings
from riskaudit.results import AuditResult
from riskaudit.studies.base import StudyRun
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.verify.run import verify


@pytest.fixture(scope="session")
def verified() -> AuditResult:
    """Two attacks and the oracle at two noise levels."""
    return verify(
        network(),
        digits(6),
        AuditSettings(prior="isotropic"),
        AttackSettings(("gauss-newton", "inverting-gradients", "local"), steps=25),
        StudyRun(command="riskaudit verify"),
        noise_stds=[NOISE, 0.0],
    )
