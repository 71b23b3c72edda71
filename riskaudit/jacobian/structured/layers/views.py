"""Functions that rearrange a parameter linearly: views, parts of it, conversions that convert nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from riskaudit.jacobian.structured.recording import Recorder
from riskaudit.jacobian.structured.registry import Function, UnsupportedLayer, register

# Of tensors and of torch, of tensors only, and properties.
VIEWS = [
    "reshape",
    "unsqueeze",
    "squeeze",
    "transpose",
    "t",
    "permute",
    "flatten",
    "movedim",
    "swapaxes",
    "clone",
    "neg",
    "narrow",
    "select",
    "index_select",
]
METHODS = ["view", "view_as", "unflatten", "contiguous", "__getitem__", "__neg__"]
PROPERTIES = ("T", "mT")


def _view(function: Callable[..., Tensor]) -> Function:
    def layer(recorder: Recorder, tensor: Tensor, *rest: Any, **named: Any) -> Tensor:
        indices = [leaf for leaf in tree_leaves((rest, named)) if isinstance(leaf, Tensor)]
        # The same entries for every sample, as Swin's attention takes from its table of relative positions.
        sizes = [size for index in indices for size in index.shape]
        if indices and recorder.depends_on_batch(any(size % recorder.num_samples == 0 for size in sizes)):
            raise UnsupportedLayer("a parameter indexed by a tensor of the batch", recorder.name_of(tensor))
        return recorder.record_view(tensor, lambda value: function(value, *rest, **named))

    return layer


# Some names stand for one and the same function.
for _function in {
    *(getattr(owner, name) for owner in (Tensor, torch) for name in VIEWS),
    *(getattr(Tensor, name) for name in METHODS),
    *(getattr(Tensor, name).__get__ for name in PROPERTIES),
}:
    register(_function)(_view(_function))


def _cut(function: Callable[..., Sequence[Tensor]]) -> Function:
    """A function that cuts a parameter into parts, each a view."""

    def part(number: int, *rest: Any, **named: Any) -> Callable[[Tensor], Tensor]:
        return lambda value: function(value, *rest, **named)[number]

    def layer(recorder: Recorder, tensor: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, ...]:
        count = len(function(tensor, *rest, **named))
        return tuple(recorder.record_view(tensor, part(number, *rest, **named)) for number in range(count))

    return layer


for _cutting in (Tensor.chunk, torch.chunk, Tensor.split, torch.split, Tensor.unbind, torch.unbind):
    register(_cutting)(_cut(_cutting))


@register(F.dropout)
def _dropout(recorder: Recorder, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In eval mode nothing is dropped."""
    if training or inplace:
        raise UnsupportedLayer("dropout of a parameter in training or in place", recorder.name_of(input))
    return recorder.record_view(input, torch.clone)


@register(Tensor.detach, torch.detach)
def _detach(recorder: Recorder, input: Tensor) -> Tensor:
    return recorder.record_detached(input)


def _conversion(function: Callable[..., Tensor]) -> Function:
    """A conversion of dtype or device, known where it has nothing to convert."""

    def layer(recorder: Recorder, tensor: Tensor, *rest: Any, **named: Any) -> Tensor:
        result = function(tensor, *rest, **named)
        if (result.dtype, result.device) != (tensor.dtype, tensor.device):
            raise UnsupportedLayer("a parameter converted to another dtype or device", recorder.name_of(tensor))
        return recorder.record_view(tensor, lambda value: value.clone())

    return layer


for _converting in (Tensor.to, Tensor.float, Tensor.double, Tensor.type_as):
    register(_converting)(_conversion(_converting))
