"""Questions asked of a model by experiment: each a plain function of model, data and settings that gives a record."""

from riskaudit.studies.attacking import AttackSettings
from riskaudit.studies.calibration import calibrate
from riskaudit.studies.verification import verify

__all__ = ["AttackSettings", "calibrate", "verify"]
