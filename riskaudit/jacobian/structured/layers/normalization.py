"""Normalizations: what normalizes has no parameters; the weights that follow are products and sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from riskaudit.jacobian.structured.layers.arithmetic import ScaleShiftContraction
from riskaudit.jacobian.structured.normalized import normalized_channels, normalized_rows
from riskaudit.jacobian.structured.recording import Recorder
from riskaudit.jacobian.structured.registry import (
    Function,
    UnsupportedLayer,
    register,
    register_batch_layer,
    register_smooth,
)

aten = torch.ops.aten


def _scaled(
    recorder: Recorder, layer: str, normal: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]
) -> Tensor:
    """Normal * weight + bias, each brought to ``shape`` (1 where it is repeated)."""
    output = normal
    if weight is not None:
        output = output * weight.reshape(shape)
    if bias is not None:
        output = output + bias.reshape(shape)
    given = {role: tensor for role, tensor in (("weight", weight), ("bias", bias)) if tensor is not None}
    shapes = {role: tensor.shape for role, tensor in given.items()}
    return recorder.record_call(
        layer,
        [normal],
        output,
        lambda factors, roles, axis: ScaleShiftContraction(
            factors, roles, shapes, dict.fromkeys(shapes, axis.parameter_shape(shape))
        ),
        **given,
    )


def _per_channel(input: Tensor) -> tuple[int, ...]:
    return (1, input.shape[1], *(1,) * (input.ndim - 2))


@register(F.batch_norm)
def _batch_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    shape = _per_channel(input)
    if training or running_mean is None or running_var is None:
        normal = _normalized(recorder, input, eps)
        return _scaled(recorder, "BatchNorm", normal, weight, bias, shape)
    scale = torch.rsqrt(running_var + eps)
    normal = input * scale.reshape(shape) - (running_mean * scale).reshape(shape)
    return _scaled(recorder, "BatchNorm", normal, weight, bias, shape)


@register_batch_layer(F.batch_norm)
def _frozen_batch_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if running_mean is not None and running_var is not None and not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    output, shape = _normalized(recorder, input, eps), _per_channel(input)
    output = output if weight is None else output * weight.reshape(shape)
    return output if bias is None else output + bias.reshape(shape)


def _normalized(recorder: Recorder, input: Tensor, eps: float) -> Tensor:
    """An input by the statistics of its batch.

    Raises:
        UnsupportedLayer: where samples must be kept apart, and where a channel has one value, which torch refuses.
    """
    if recorder.statistics == "refused":
        raise UnsupportedLayer("batch norm with the statistics of the batch")
    if input.numel() == input.shape[1]:
        raise UnsupportedLayer("batch norm with the statistics of one value")
    if recorder.statistics == "batch":
        return normalized_channels(input, eps)
    # As constants they mix no samples; one sample may be NaN.
    axes = [axis for axis in range(input.ndim) if axis != 1]
    mean = input.detach().nanmean(axes, keepdim=True)
    var = (input.detach() - mean).square().nanmean(axes, keepdim=True)
    return (input - mean) * torch.rsqrt(var + eps)


def _in_aten_order(layer: Function) -> Function:
    """The same layer for the functions that take its arguments in another order."""

    def reordered(
        recorder: Recorder,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool = False,
    ) -> Any:
        return layer(recorder, input, running_mean, running_var, weight, bias, training, momentum, eps)

    return reordered


for _registering, _layer in ((register, _batch_norm), (register_batch_layer, _frozen_batch_norm)):
    _registering(torch.batch_norm, aten.batch_norm.default)(_in_aten_order(_layer))


@register(F.layer_norm, torch.layer_norm, aten.layer_norm.default)
def _layer_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    normal = normalized_rows(input, list(normalized_shape), eps)
    shape = (*(1,) * (input.ndim - len(normalized_shape)), *normalized_shape)
    return _scaled(recorder, "LayerNorm", normal, weight, bias, shape)


@register_smooth(F.layer_norm, torch.layer_norm, aten.layer_norm.default)
def _frozen_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    output = normalized_rows(input, list(normalized_shape), eps)
    output = output if weight is None else output * weight
    return output if bias is None else output + bias


@register(F.rms_norm, torch.rms_norm, aten.rms_norm.default)
def _rms_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    normal = F.rms_norm(input, list(normalized_shape), None, eps)
    shape = (*(1,) * (input.ndim - len(normalized_shape)), *normalized_shape)
    return _scaled(recorder, "RMSNorm", normal, weight, None, shape)


@register(F.group_norm, torch.group_norm, aten.group_norm.default)
def _group_norm(
    recorder: Recorder,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    return _scaled(
        recorder, "GroupNorm", F.group_norm(input, num_groups, None, None, eps), weight, bias, _per_channel(input)
    )


@register(F.instance_norm)
def _instance_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(recorder, input, running_mean, running_var, weight, bias, False, momentum, eps)
    normal = F.instance_norm(input, eps=eps)
    return _scaled(recorder, "InstanceNorm", normal, weight, bias, _per_channel(input))


@register(torch.instance_norm, aten.instance_norm.default)
def _aten_instance_norm(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Tensor:
    return _instance_norm(recorder, input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
