"""Signs that a received model was changed so that its gradients tell more: a file each, registered on import."""

from importlib import import_module
from pkgutil import iter_modules

from riskaudit.checks.received.base import SIGNS, Judgement, Measurement, Sign, SignNotApplicable
from riskaudit.checks.received.observation import ObservedModel, observe

__all__ = ["SIGNS", "Judgement", "Measurement", "ObservedModel", "Sign", "SignNotApplicable", "observe"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
