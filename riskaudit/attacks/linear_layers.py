"""The fully connected layers of a model, as they are met when it runs: what the closed-form attacks read.

Layers are found by running the model on probes, so that it doesn't matter how it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from riskaudit.release import Release

# Rounding of the probes, relative to the largest coordinate.
ROUNDING = 1e3


@dataclass(frozen=True, eq=False)
class LinearCall:
    """One fully connected layer that the model called exactly once.

    Attributes:
        name: in the model.
        inputs: [N, ..., features].
        outputs: [N, ..., width].
        weight: where the gradient of its weight lies in a released vector; None where it isn't released as it is.
        bias: likewise.
    """

    name: str
    inputs: Tensor
    outputs: Tensor
    weight: slice | None
    bias: slice | None


def linear_calls(release: Release, probes: Tensor) -> tuple[list[LinearCall], Tensor]:
    """Run the model on probes [N, *S]; its fully connected layers in the order of their calls, and its outputs."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    layers = {name: layer for name, layer in release.model.named_modules() if isinstance(layer, nn.Linear)}

    def noting(name: str) -> Any:
        return lambda layer, arguments, output: seen.setdefault(name, []).append((arguments[0], output))

    handles = [layer.register_forward_hook(noting(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            outputs = release.run(release.parameters, probes)
    finally:
        for handle in handles:
            handle.remove()
    spans = _spans(release)
    calls = [
        LinearCall(name, *layer_calls[0], *(_own(release, layers[name], role, spans) for role in ("weight", "bias")))
        for name, layer_calls in seen.items()
        if len(layer_calls) == 1
    ]
    return calls, outputs


def _spans(release: Release) -> dict[str, slice]:
    """Where the gradient of each parameter that is sent lies in a released vector."""
    spans, first = {}, 0
    for name, shape in release.sent.shapes.items():
        spans[name] = slice(first, first + shape.numel())
        first += shape.numel()
    return spans


def _own(release: Release, layer: nn.Linear, role: str, spans: dict[str, slice]) -> slice | None:
    """The place of a parameter that belongs to this layer alone; None for tied, frozen or parametrised ones."""
    name = own_parameter(release.model, layer, role)
    return None if name is None else spans.get(name)


def own_parameter(model: nn.Module, layer: nn.Module, role: str) -> str | None:
    """The name in the model of a parameter that belongs to this layer alone; None for tied or parametrised ones."""
    parameter = layer._parameters.get(role)
    if parameter is None:
        return None
    holders = [module for module in model.modules() for each in module._parameters.values() if each is parameter]
    names = [name for name, candidate in model.named_parameters() if candidate is parameter]
    return names[0] if len(holders) == 1 else None


def coordinatewise_map(points: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
    """Scale and shift [d] in float64 of a layer whose input is scale x + shift, coordinate by coordinate.

    Args:
        points: x, [N, d]: zeros, ones, and others that tell whether it is so.
        inputs: what enters the layer there, [N, ...].

    Returns:
        None where it is more than that, or a coordinate is lost.
    """
    if inputs.shape != points.shape:
        return None
    shift, scale = inputs[0], inputs[1] - inputs[0]
    error = (inputs - (points * scale + shift)).abs().max()
    if not bool(error <= ROUNDING * torch.finfo(inputs.dtype).eps * inputs.abs().max()) or bool((scale == 0).any()):
        return None
    return scale.double(), shift.double()
