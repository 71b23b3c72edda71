"""``torchvision:NAME`` and ``timm:NAME``: their models, built without pretrained weights."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

from torch import nn

from riskaudit.errors import ArchitectureError
from riskaudit.inputs.architectures.registry import Shapes, matching_sizes, reference_shapes, register_collection
from riskaudit.inputs.text import clean
from riskaudit.torchvision_compat import import_torchvision


def _of_torchvision() -> list[str]:
    try:
        models = import_torchvision().models
    except ImportError:
        return []
    names: list[str] = models.list_models(module=models)
    return names


def _of_timm() -> list[str]:
    try:
        import_torchvision()
        import timm
    except ImportError:
        return []
    names: list[str] = timm.list_models()
    return names


@register_collection(
    "torchvision",
    description="a classification model of torchvision, such as torchvision:resnet18",
    names=_of_torchvision,
)
def build_torchvision(name: str, shapes: Shapes) -> nn.Module:
    """The model ``name`` with as many classes as the weights' last layer; nothing is downloaded.

    Raises:
        ArchitectureError: torchvision isn't installed or has no such classification model.
    """
    try:
        models = import_torchvision().models
    except ImportError as cause:
        raise ArchitectureError(
            f'torchvision:{clean(name, 40)} needs torchvision; run pip install "riskaudit[torchvision]"'
        ) from cause
    names = models.list_models(module=models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names[:3])} and more"
        raise ArchitectureError(f"torchvision has no classification model {clean(name, 40)!r}; {hint}")
    with warnings.catch_warnings():
        # Two models warn that their default initialisation will change; the weights replace it anyway.
        warnings.simplefilter("ignore")
        reference = reference_shapes(lambda: models.get_model(name, weights=None))
        classes, _ = matching_sizes(reference, shapes, f"torchvision:{name}")
        model: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    return model


@register_collection("timm", description="a model of timm, such as timm:vit_tiny_patch16_224", names=_of_timm)
def build_timm(name: str, shapes: Shapes) -> nn.Module:
    """The model ``name`` with the weights' number of classes and input channels; nothing is downloaded.

    Raises:
        ArchitectureError: timm isn't installed, has no such model, or can't build it for these weights.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # timm imports torchvision, which must already have been made importable.
            import_torchvision()
            import timm
        except ImportError as cause:
            raise ArchitectureError(f'timm:{clean(name, 40)} needs timm; run pip install "riskaudit[timm]"') from cause
        # Only plain names: `hf-hub:...` would reach for the network.
        if not name.replace("_", "").replace(".", "").isalnum() or not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
            raise ArchitectureError(f"timm has no model {clean(name, 40)!r}; {hint}")
        try:
            reference = reference_shapes(lambda: timm.create_model(name, pretrained=False))
            classes, channels = matching_sizes(reference, shapes, f"timm:{name}")
            options: dict[str, Any] = {} if channels is None else {"in_chans": channels}
            model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **options)
        except (TypeError, ValueError, RuntimeError, AssertionError) as cause:
            raise ArchitectureError(
                f"timm can't build {clean(name, 40)} for these weights ({clean(cause)}); use `arch=file.py:factory`"
            ) from cause
    return model
