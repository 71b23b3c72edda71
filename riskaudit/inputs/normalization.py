"""Normalisation as a layer of the audited model, so that its input stays in data units.

Also which part of a model's output the loss is computed from, where a model returns more than one tensor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riskaudit.errors import CheckpointError, SamplesError
from riskaudit.inputs.text import clean, listing


class Normalized(nn.Module):
    """``model((x - mean) / std)``; x [B, C, H, W] or [B, F], mean and std in data units, one or one per channel."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        reference = next(model.parameters(), torch.zeros(()))
        self.register_buffer("mean", reference.new_tensor(list(mean)), persistent=False)
        self.register_buffer("std", reference.new_tensor(list(std)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The wrapped model's output for a batch x [B, ...] in data units."""
        trailing = (1,) * (x.ndim - 2)
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        normalized: Tensor = self.model((x - mean.reshape(-1, *trailing)) / std.reshape(-1, *trailing))
        return normalized


def check_normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int | None
) -> tuple[list[float], list[float]] | None:
    """``(mean, std)`` as lists of one length, or None where neither is given.

    Raises:
        CheckpointError: only one given, lengths that don't fit, not finite, or std not positive.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        given, missing = ("`mean`", "`std`") if std is None else ("`std`", "`mean`")
        raise CheckpointError(f"{given} is given without {missing}; give both or neither")
    means, stds = [float(value) for value in mean], [float(value) for value in std]
    for option, values in (("`mean`", means), ("`std`", stds)):
        if not values or not all(math.isfinite(value) for value in values):
            raise CheckpointError(f"expected finite numbers for {option}, found {values}")
        if channels is not None and len(values) not in (1, channels):
            raise CheckpointError(
                f"expected one value or {channels} (one per channel) for {option}, found {len(values)}"
            )
    if min(stds) <= 0:
        raise CheckpointError(f"expected positive values for `std`, found {min(stds)}")
    length = max(len(means), len(stds))
    if len(means) not in (1, length) or len(stds) not in (1, length):
        raise CheckpointError(
            f"`mean` has {len(means)} values and `std` {len(stds)}; give as many of one as of the other"
        )
    return means * (length // len(means)), stds * (length // len(stds))


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
