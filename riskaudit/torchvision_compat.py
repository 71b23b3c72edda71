"""The one place that imports torchvision.

Beside a torch that was built for another platform, torchvision's compiled operators don't load and
``import torchvision`` fails with "operator torchvision::nms does not exist". Its models need none of
them, only their declarations, so these are made here when the plain import has failed.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

import torch

_SCHEMAS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def _declare_operators() -> Any:
    """Schemas of the missing operators; the returned object keeps them alive, hence the cache."""
    library: Any = torch.library.Library
    declared = library("torchvision", "DEF")
    for name in _SCHEMAS:
        declared.define(name + _SIGNATURE)
    return declared


def import_torchvision() -> ModuleType:
    """The torchvision package, usable for its models and transforms.

    Raises:
        ImportError: torchvision isn't installed.
    """
    with warnings.catch_warnings():
        # On import it warns of compiled image codecs that nothing here uses.
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise ImportError(f"torchvision can't be imported ({error})") from error
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare_operators()
        return importlib.import_module("torchvision")
