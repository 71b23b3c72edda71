"""Layer and instance norm with their weights applied outside, where torch differentiates them rightly.

Reverse mode over ``vmap(grad(...))`` of the fused operators gives wrong second derivatives, silently,
where they have weights (torch 2.13; pytorch/functorch#534): on a small network J^T u was off by 0.5 %
while J v was right. Without weights the same operators are right, and so is the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from riskaudit.release.interception import Interception


def _layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    normal = torch.layer_norm(input, normalized_shape, None, None, eps, cudnn_enable)
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = False,
) -> Tensor:
    normal = torch.instance_norm(
        input, None, None, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled
    )
    shape = (-1, *(1,) * (input.ndim - 2))
    normal = normal if weight is None else normal * weight.reshape(shape)
    return normal if bias is None else normal + bias.reshape(shape)


def _aten_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *rest: Any,
    **named: Any,
) -> Tensor:
    return _instance_norm(input, running_mean, running_var, weight, bias, *rest, **named)


_SPLIT: Mapping[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    torch.ops.aten.layer_norm.default: _layer_norm,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _aten_instance_norm,
    torch.ops.aten.instance_norm.default: _aten_instance_norm,
}


class AffineNormsApart(Interception):
    """Within this context every layer norm and instance norm applies its weights as plain products."""

    @override
    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        split: Callable[..., Any] = _SPLIT.get(function, function)
        return split(*args, **kwargs)
