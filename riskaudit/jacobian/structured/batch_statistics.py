"""Batch norm with the statistics of the batch, and its derivatives as Phi needs them.

Per channel of M entries, y = N(x) = (x - mean(x)) s with s = 1 / sqrt(var(x) + eps). With the projection

    A g = s (g - mean(g) - y mean(y g)),    its own transpose,

the transpose of dN on g is A g, and the second derivative of <g, N(x)> along h is

    D(g, h) = -s (mean(y g) A h + mean(y h) A g) - s^2 (mean(g h) - mean(g) mean(h) - mean(y g) mean(y h)) y,

which is linear in h and its own transpose there. Both cost a few passes over the activation, where torch's own second
and third derivatives take dozens. Third derivatives are left out: no product needs them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


class _Statistics:
    """What one batch norm's derivatives share."""

    def __init__(self, inputs: Tensor, eps: float) -> None:
        self.inputs, self.eps = inputs, eps
        ones = inputs.new_ones(inputs.shape[1])
        self.ones, self.axes = ones, [axis for axis in range(inputs.ndim) if axis != 1]
        self.count = inputs.numel() / len(ones)
        self.shape = (-1, *(1,) * (inputs.ndim - 2))
        normal, mean, scale = aten.native_batch_norm(inputs, None, None, None, None, True, 0.0, eps)
        self.normal: Tensor = normal
        self.mean: Tensor = mean
        self.scale: Tensor = scale

    def projected(self, signals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A g, mean(y g) and mean(g)."""
        projected, overlap, total = aten.native_batch_norm_backward(
            signals, self.inputs, self.ones, None, None, self.mean, self.scale, True, self.eps, (True, True, True)
        )
        return projected, overlap / self.count, total / self.count

    def second(self, first: Tensor, second: Tensor) -> Tensor:
        """D(g, h)."""
        left, left_overlap, left_mean = self.projected(first)
        right, right_overlap, right_mean = self.projected(second)
        product = (first * second).mean(self.axes) - left_mean * right_mean - left_overlap * right_overlap
        result = right.mul_(self._channels(-self.scale * left_overlap))
        result.addcmul_(left, self._channels(-self.scale * right_overlap))
        return result.addcmul_(self.normal, self._channels(-self.scale.square() * product))

    def _channels(self, values: Tensor) -> Tensor:
        return values.reshape(self.shape)


class _Normalize(torch.autograd.Function):
    """N."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, statistics: _Statistics) -> Tensor:
        ctx.statistics = statistics
        ctx.save_for_backward(inputs)
        return statistics.normal.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inputs,) = ctx.saved_tensors
        return _Project.apply(gradient, inputs, ctx.statistics), None  # type: ignore[no-untyped-call]


class _Project(torch.autograd.Function):
    """A g, as a function of g and of x."""

    @staticmethod
    def forward(ctx: Any, signals: Tensor, inputs: Tensor, statistics: _Statistics) -> Tensor:
        ctx.statistics, ctx.signals = statistics, signals.detach()
        ctx.save_for_backward(inputs)
        return statistics.projected(signals)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (inputs,) = ctx.saved_tensors
        along = _Project.apply(gradient, inputs.detach(), ctx.statistics)  # type: ignore[no-untyped-call]
        second = None
        if ctx.needs_input_grad[1]:
            second = _Second.apply(gradient, ctx.signals, ctx.statistics)  # type: ignore[no-untyped-call]
        return along, second, None


class _Second(torch.autograd.Function):
    """D(g, h), as a function of h."""

    @staticmethod
    def forward(ctx: Any, along: Tensor, signals: Tensor, statistics: _Statistics) -> Tensor:
        ctx.statistics, ctx.signals = statistics, signals
        return statistics.second(signals, along)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Second.apply(gradient, ctx.signals, ctx.statistics), None, None  # type: ignore[no-untyped-call]


def normalized(inputs: Tensor, eps: float) -> Tensor:
    """N(x) of x [B, C, ...], by the statistics over all axes but the second; twice differentiable in x."""
    if not inputs.requires_grad:
        return _Statistics(inputs, eps).normal
    result: Tensor = _Normalize.apply(inputs, _Statistics(inputs.detach(), eps))  # type: ignore[no-untyped-call]
    return result
