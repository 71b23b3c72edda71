"""Which part of a model's output the loss is computed from, where a model returns more than one tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from riskaudit.errors import SamplesError
from riskaudit.inputs.text import clean, listing

# What classifiers (Hugging Face) and segmentation models (torchvision) call the tensor that the loss takes.
NAMES = ("logits", "out")


class OutputEntry(nn.Module):
    """``model(x)``, of which one entry is kept."""

    def __init__(self, model: nn.Module, key: str | int) -> None:
        super().__init__()
        self.model = model
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        """The chosen entry of the wrapped model's output for a batch x [B, ...]."""
        entry: Tensor = _entries(self.model(x))[self.key]
        return entry


def entry_of_loss(outputs: Any, num_classes: int | None, name: str) -> str | int | None:
    """The entry of an output that a loss of class numbers or values takes; None where the output is one tensor.

    That is ``logits`` or ``out``; else the only tensor, or the only one [B, C] with a column per class.

    Raises:
        SamplesError: no entry or several ones may be meant.
    """
    if isinstance(outputs, Tensor):
        return None
    tensors: dict[str | int, Tensor] = {
        key: value for key, value in _entries(outputs).items() if isinstance(value, Tensor) and value.ndim > 0
    }
    for key in NAMES:
        if key in tensors:
            return key
    if len(tensors) == 1:
        return next(iter(tensors))
    logits = [key for key, value in tensors.items() if value.ndim == 2 and value.shape[1] == num_classes]
    if len(logits) == 1:
        return logits[0]
    held = f"a {clean(type(outputs).__name__, 30)}"
    if tensors:
        held += f" with several tensors ({listing(tensors)})"
    raise SamplesError(
        f"{name} returns {held}, and which of them the loss is computed from can't be told; give a loss that takes the "
        "whole output (`loss=file.py:function`), or a model that returns one tensor (`arch=file.py:factory`)"
    )


def _entries(outputs: Any) -> dict[Any, Any]:
    """The entries of an output by key, field or position; none of anything else."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    if isinstance(outputs, tuple | list):
        return dict(enumerate(outputs))
    return {}
