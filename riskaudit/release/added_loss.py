"""What layers add to the loss of training by themselves: L(x) = l(f(x), y) + sum over layers of a(inputs of the layer).

A layer says so by a method ``added_loss``, as the bottleneck of PRECODE does for its divergence (Scheliga et al., WACV
2022). It is called beside the layer's own forward, on the same inputs, and gives one number per sample, which may
depend on that sample's part of the inputs alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class AddsLoss(Protocol):
    """A layer that adds to the loss."""

    def added_loss(self, *inputs: Tensor) -> Tensor:
        """What is added for every sample, [B], given what enters the layer."""


def adding_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that add to its loss."""
    return [layer for layer in model.modules() if isinstance(layer, AddsLoss)]


@contextmanager
def collected(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Within this context, what the layers add to the loss in every call, each [B]."""
    terms: list[Tensor] = []

    def note(layer: Any, inputs: tuple[Any, ...], _: Any) -> None:
        terms.append(layer.added_loss(*inputs))

    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield terms
    finally:
        for handle in handles:
            handle.remove()
