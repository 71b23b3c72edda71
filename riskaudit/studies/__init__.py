"""Questions asked of a model by experiment: a folder each, whose ``run`` turns model, data and settings into a record.

Names are imported on first use, so that what a study recorded can be read without torch. `verify` and `calibrate`,
which are named like their folders, are imported from `riskaudit`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from riskaudit.studies.base import StudyRun
    from riskaudit.studies.directions.run import directions_study
    from riskaudit.studies.fairness.run import fairness_study
    from riskaudit.studies.initialization.run import initialization_study
    from riskaudit.studies.settings import AttackSettings, DirectionSettings
    from riskaudit.studies.training.run import training_study

_HOMES = {
    "AttackSettings": "riskaudit.studies.settings",
    "DirectionSettings": "riskaudit.studies.settings",
    "StudyRun": "riskaudit.studies.base",
    "directions_study": "riskaudit.studies.directions.run",
    "fairness_study": "riskaudit.studies.fairness.run",
    "initialization_study": "riskaudit.studies.initialization.run",
    "training_study": "riskaudit.studies.training.run",
}

__all__ = [
    "AttackSettings",
    "DirectionSettings",
    "StudyRun",
    "directions_study",
    "fairness_study",
    "initialization_study",
    "training_study",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'riskaudit.studies' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
