"""Questions asked of a model by experiment: each a plain function of model, data and settings that gives a record."""

from riskaudit.studies.attacking import AttackSettings
from riskaudit.studies.calibration import calibrate
from riskaudit.studies.directions import DirectionSettings, directions_study
from riskaudit.studies.fairness import fairness_study
from riskaudit.studies.initialization import initialization_study
from riskaudit.studies.training import training_study
from riskaudit.studies.verification import verify

__all__ = [
    "AttackSettings",
    "DirectionSettings",
    "calibrate",
    "directions_study",
    "fairness_study",
    "initialization_study",
    "training_study",
    "verify",
]
