"""The steps of releases, one file each; every file of this folder is imported, so that its steps are registered."""

import importlib
import pkgutil

from riskaudit.release.steps.base import STEPS, Step, StepContext, register

__all__ = ["STEPS", "Step", "StepContext", "register"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
