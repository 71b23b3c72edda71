"""Activations whose first two derivatives are worked out once, since every product with J needs them again.

Of y = g(x), entry by entry, the transpose of the derivative on s is s g'(x), and that changes along h by h s g''(x).
Torch's own second derivatives evaluate error functions and exponentials anew in every product. Third derivatives are
left out: no product needs them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from riskaudit.jacobian.structured.registry import register_smooth

aten = torch.ops.aten

# Of the tanh form of GELU: tanh(SLOPE (x + CUBE x^3)).
SLOPE, CUBE = math.sqrt(2 / math.pi), 0.044715


class _Activation(torch.autograd.Function):
    """y, given with g'(x) and g''(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.first, ctx.second = first, second
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return _Slope.apply(gradient, x, ctx.first, ctx.second), None, None, None  # type: ignore[no-untyped-call]


class _Slope(torch.autograd.Function):
    """s g'(x), as a function of s and of x."""

    @staticmethod
    def forward(ctx: Any, signals: Tensor, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.first = first
        ctx.curved = signals * second if ctx.needs_input_grad[1] else None
        return signals * first

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        return gradient * ctx.first, None if ctx.curved is None else gradient * ctx.curved, None, None


@register_smooth(F.gelu, aten.gelu.default)
def _gelu(input: Tensor, approximate: str = "none") -> Tensor:
    if not input.requires_grad:
        return F.gelu(input, approximate=approximate)
    x = input.detach()
    value = F.gelu(x, approximate=approximate)
    if approximate == "none":
        density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
        first = 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density
        return _given(input, value, first, density * (2 - x.square()))
    squares = x.square()
    t, slope = torch.tanh(SLOPE * x * (1 + CUBE * squares)), SLOPE * (1 + 3 * CUBE * squares)
    steep = 1 - t.square()
    first = 0.5 * (1 + t) + 0.5 * x * steep * slope
    second = steep * slope + x * steep * (3 * CUBE * SLOPE * x - t * slope.square())
    return _given(input, value, first, second)


@register_smooth(F.silu, aten.silu.default)
def _silu(input: Tensor, inplace: bool = False) -> Tensor:
    if inplace or not input.requires_grad:
        return F.silu(input, inplace=inplace)
    x = input.detach()
    sigmoid = torch.sigmoid(x)
    slope = sigmoid * (1 - sigmoid)
    return _given(input, F.silu(x), sigmoid + x * slope, slope * (2 + x * (1 - 2 * sigmoid)))


def _given(x: Tensor, value: Tensor, first: Tensor, second: Tensor) -> Tensor:
    result: Tensor = _Activation.apply(x, value, first, second)  # type: ignore[no-untyped-call]
    return result
