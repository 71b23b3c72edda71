"""What a model's own order of layers, held beside some weights, says about input channels and classes.

Weights alone don't do: a ``.safetensors`` file lists them alphabetically.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from riskaudit.errors import ArchitectureError
from riskaudit.inputs.architectures.registry import Shapes, shapes_of
from riskaudit.inputs.text import shape_text


def layer_weights(shapes: Shapes) -> list[str]:
    """The names of all ``weight`` entries with two or more sizes, in order."""
    return [name for name, shape in shapes.items() if name.rpartition(".")[2] == "weight" and len(shape) >= 2]


def first_channels(shapes: Shapes) -> int | None:
    """Input channels of the first layer where that is a convolution; ``shapes`` in the model's order."""
    names = layer_weights(shapes)
    return shapes[names[0]][1] if names and len(shapes[names[0]]) in (3, 4, 5) else None


def input_channels(model: nn.Module) -> int | None:
    """Input channels of the first layer that a model registers, where that is a convolution of images or series."""
    for module in model.modules():
        if isinstance(module, _ConvNd):
            # Volumes may come without an axis of channels, which their three axes don't show.
            return None if module.weight.ndim == 5 else module.in_channels
        if any(weight.ndim >= 2 for weight in module.parameters(recurse=False)):
            return None
    return None


def last_width(shapes: Shapes) -> int | None:
    """Outputs of the last layer, taken for the number of classes; ``shapes`` in the model's order."""
    names = layer_weights(shapes)
    return shapes[names[-1]][0] if names else None


def reference_shapes(build: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model, built without memory where its constructor allows that."""
    try:
        with torch.device("meta"):
            return shapes_of(build())
    except (RuntimeError, NotImplementedError):
        # Some constructors compute with numbers, which meta tensors don't hold.
        return shapes_of(build())


def matching_sizes(reference: Shapes, shapes: Shapes, title: str) -> tuple[int, int | None]:
    """Number of classes and input channels of weights, read where the reference model has its ends.

    Raises:
        ArchitectureError: the weights have no such layers.
    """
    names = layer_weights(reference)
    for name in (names[0], names[-1]):
        if name not in shapes or len(shapes[name]) != len(reference[name]) or 0 in shapes[name]:
            problem = f"has shape {shape_text(shapes[name])}" if name in shapes else "is missing"
            raise ArchitectureError(
                f"the weights don't fit {title}: {name} {problem}, expected {len(reference[name])} sizes; "
                "name another `arch` or use `arch=file.py:factory`"
            )
    channels = shapes[names[0]][1] if first_channels(reference) is not None else None
    return shapes[names[-1]][0], channels
