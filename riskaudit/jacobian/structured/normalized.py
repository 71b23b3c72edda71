"""What normalizes by the statistics of its input, and its derivatives as Phi needs them: by channels, and by rows.

Per channel of a batch (batch norm with its statistics) or per row (layer norm), with means over its entries,
y = N(x) = (x - mean(x)) s with s = 1 / sqrt(var(x) + eps). With the projection

    A g = s (g - mean(g) - y mean(y g)),    its own transpose,

the transpose of dN on g is A g, and the second derivative of <g, N(x)> along h is

    D(g, h) = -s (mean(y g) A h + mean(y h) A g) - s^2 (mean(g h) - mean(g) mean(h) - mean(y g) mean(y h)) y,

which is linear in h and its own transpose there. Both cost a few passes over the activation, where torch's own second
and third derivatives take dozens. Third derivatives are left out: no product needs them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from typing_extensions import override

aten = torch.ops.aten

# A g, mean(y g) and mean(g).
Projected: TypeAlias = tuple[Tensor, Tensor, Tensor]


class _Statistics(ABC):
    """What one normalization's derivatives share: y and s. Means are kept 1 along their axes."""

    normal: Tensor
    scale: Tensor

    @abstractmethod
    def applied(self, signals: Tensor) -> Tensor:
        """A g."""

    @abstractmethod
    def projected(self, signals: Tensor) -> Projected:
        """A g with its means."""

    @abstractmethod
    def mean(self, values: Tensor) -> Tensor:
        """Over the entries of a channel or row."""

    @final
    def second(self, signals: Tensor, left: Projected, along: Tensor) -> Tensor:
        """D(g, h), given what is projected of g."""
        (first, first_overlap, first_mean), (second, second_overlap, second_mean) = left, self.projected(along)
        product = self.mean(signals * along) - first_mean * second_mean - first_overlap * second_overlap
        result = second.mul_(-self.scale * first_overlap)
        result.addcmul_(first, -self.scale * second_overlap)
        return result.addcmul_(self.normal, -self.scale.square() * product)


@final
class _ChannelStatistics(_Statistics):
    """Of x [B, C, ...] by channels."""

    def __init__(self, inputs: Tensor, eps: float) -> None:
        self.inputs, self.eps = inputs, eps
        ones = inputs.new_ones(inputs.shape[1])
        self.ones, self.axes = ones, [axis for axis in range(inputs.ndim) if axis != 1]
        self.count = inputs.numel() / len(ones)
        self.shape = (-1, *(1,) * (inputs.ndim - 2))
        self.normal, self.means, self.scales = aten.native_batch_norm(inputs, None, None, None, None, True, 0.0, eps)
        self.scale = self.scales.reshape(self.shape)

    @override
    def applied(self, signals: Tensor) -> Tensor:
        return self.projected(signals)[0]

    @override
    def projected(self, signals: Tensor) -> Projected:
        projected, overlap, total = aten.native_batch_norm_backward(
            signals, self.inputs, self.ones, None, None, self.means, self.scales, True, self.eps, (True, True, True)
        )
        return projected, (overlap / self.count).reshape(self.shape), (total / self.count).reshape(self.shape)

    @override
    def mean(self, values: Tensor) -> Tensor:
        return values.mean(self.axes, keepdim=True)


@final
class _RowStatistics(_Statistics):
    """Of x [..., *shape] over the last axes."""

    def __init__(self, inputs: Tensor, shape: list[int], eps: float) -> None:
        self.inputs, self.shape = inputs, shape
        self.axes = list(range(-len(shape), 0))
        self.normal, self.means, self.scale = aten.native_layer_norm(inputs, shape, None, None, eps)

    @override
    def applied(self, signals: Tensor) -> Tensor:
        applied: Tensor = aten.native_layer_norm_backward(
            signals, self.inputs, self.shape, self.means, self.scale, None, None, (True, False, False)
        )[0]
        return applied

    @override
    def projected(self, signals: Tensor) -> Projected:
        return self.applied(signals), self.mean(self.normal * signals), self.mean(signals)

    @override
    def mean(self, values: Tensor) -> Tensor:
        return values.mean(self.axes, keepdim=True)


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
        ctx.statistics = statistics
        ctx.save_for_backward(inputs)
        if not ctx.needs_input_grad[1]:
            return statistics.applied(signals)
        applied, *means = statistics.projected(signals)
        # Not the output itself, which would hold itself.
        ctx.signals, ctx.left = signals.detach(), (applied.detach(), *means)
        return applied

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (inputs,) = ctx.saved_tensors
        along = _Project.apply(gradient, inputs.detach(), ctx.statistics)  # type: ignore[no-untyped-call]
        second = None
        if ctx.needs_input_grad[1]:
            second = _Second.apply(gradient, ctx.signals, ctx.left, ctx.statistics)  # type: ignore[no-untyped-call]
        return along, second, None


class _Second(torch.autograd.Function):
    """D(g, h), as a function of h."""

    @staticmethod
    def forward(ctx: Any, along: Tensor, signals: Tensor, left: Projected, statistics: _Statistics) -> Tensor:
        ctx.statistics, ctx.signals, ctx.left = statistics, signals, left
        return statistics.second(signals, left, along)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        along = _Second.apply(gradient, ctx.signals, ctx.left, ctx.statistics)  # type: ignore[no-untyped-call]
        return along, None, None, None


def normalized_channels(inputs: Tensor, eps: float) -> Tensor:
    """N(x) of x [B, C, ...], by the statistics over all axes but the second; twice differentiable in x."""
    return _normalized(inputs, _ChannelStatistics(inputs.detach(), eps))


def normalized_rows(inputs: Tensor, shape: list[int], eps: float) -> Tensor:
    """N(x) of x [..., *shape], by the statistics over the axes of that shape; twice differentiable in x."""
    return _normalized(inputs, _RowStatistics(inputs.detach().contiguous(), shape, eps))


def _normalized(inputs: Tensor, statistics: _Statistics) -> Tensor:
    if not inputs.requires_grad:
        return statistics.normal
    result: Tensor = _Normalize.apply(inputs, statistics)  # type: ignore[no-untyped-call]
    return result
