"""``torchvision:NAME``: torchvision's classification models, built without pretrained weights."""

from __future__ import annotations

import difflib
import warnings

from torch import nn

from riskaudit.errors import ArchitectureError
from riskaudit.inputs.architectures.inference import matching_sizes, reference_shapes
from riskaudit.inputs.architectures.registry import Shapes, register_collection
from riskaudit.inputs.text import clean
from riskaudit.torchvision_compat import import_torchvision


@register_collection("torchvision", description="a classification model of torchvision, such as torchvision:resnet18")
def build(name: str, shapes: Shapes) -> nn.Module:
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
