"""The metric libraries, imported on first use: both need torchvision, which needs its own way of loading."""

from __future__ import annotations

import importlib
from types import ModuleType

from riskaudit.torchvision_compat import import_torchvision


def torchmetrics_image() -> ModuleType:
    """``torchmetrics.functional.image``."""
    # torchmetrics looks at torchvision when it is imported.
    import_torchvision()
    return importlib.import_module("torchmetrics.functional.image")


def lpips_package() -> ModuleType:
    """``lpips``."""
    import_torchvision()
    return importlib.import_module("lpips")
