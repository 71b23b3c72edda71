"""The steps of releases, one file each; every file of this folder is imported, so that its steps are registered."""

import importlib
import pkgutil

from riskaudit.release.steps.base import STEPS, BoundStep, Step, StepContext, applied, bind_steps, register

__all__ = ["STEPS", "BoundStep", "Step", "StepContext", "applied", "bind_steps", "register"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
