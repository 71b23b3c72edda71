"""What a step of the inputs does to a gradient and to what its first layers see, without vectors [B, P].

The gradient of a fully connected layer at one position is b a^T, so that norms need the factors only. A difference is

    b' a'^T - b a^T = (b' - b) m^T + n (a' - a)^T,    m = (a + a') / 2, n = (b + b') / 2,

and with e = m / |m| and c = e . (a' - a) its norm is that of (|m| (b' - b) + c n) e^T + n (a' - a - c e)^T, whose two
terms are orthogonal.
Other layers' gradients are formed, one layer at a time.

A layer is in front where what enters it isn't computed with other layers' weights: what enters it is a function of the
input that the model fixes, and stands in its gradient, one number per entry of the input in a layer without positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from riskaudit.jacobian.response import FrontLayer
from riskaudit.jacobian.structured.gradient import Gradient, is_outer_product
from riskaudit.jacobian.structured.layers.convolution import ConvolutionContraction, SharedConvolutionContraction
from riskaudit.jacobian.structured.layers.linear import LinearContraction
from riskaudit.jacobian.structured.signals import BoundCall, Signals


class GradientValues:
    """The gradients of B samples, by layers.

    Of layers at one position there are the signal b [B, c] and the input a [B, n], with a column of ones for a bias;
    of others the gradient [B, ...] is formed.
    """

    def __init__(self, gradient: Gradient) -> None:
        self._formed, self._linear = list[Tensor](), list[tuple[Tensor, Tensor]]()
        for group in gradient.groups:
            if is_outer_product(group):
                self._linear.append(_outer_factors(group[0][0]))
            else:
                self._formed += [value.flatten(1) for value in gradient.by_group(group).values()]

    @cached_property
    def norms(self) -> Tensor:
        """[B], float64."""
        squares = [value.norm(dim=1).double().square() for value in self._formed]
        squares += [(b.norm(dim=1).double() * a.norm(dim=1)).square() for b, a in self._linear]
        return torch.stack(squares).sum(0).sqrt()

    def change(self, after: GradientValues, scale: Tensor) -> Tensor:
        """Norm of scale times the gradients ``after`` minus these, [B], float64."""
        factor = scale[:, None].to(self._formed[0] if self._formed else self._linear[0][0])
        squares = [
            torch.addcmul(-value, value_after, factor).norm(dim=1).double().square()
            for value, value_after in zip(self._formed, after._formed, strict=True)
        ]
        for (b, a), (b_after, a_after) in zip(self._linear, after._linear, strict=True):
            squares.append(_outer_difference(b, a, factor * b_after, a_after))
        return torch.stack(squares).sum(0).clamp_min(0.0).sqrt()


def _outer_factors(call: BoundCall) -> tuple[Tensor, Tensor]:
    """b [B, c] and a [B, n], or (a, 1), of such a call."""
    a, b = (factor[:, 0] for factor in call.contraction.factors)
    return b, torch.cat([a, torch.ones_like(a[:, :1])], 1) if "bias" in call.contraction.roles else a


def front_layers(before: Signals, after: Signals, tangents: Sequence[Tensor]) -> list[FrontLayer]:
    """The layers in front whose weights are released, at x, at x + v, and what DPhi v says of them."""
    layers = []
    for call, moved in zip(before.calls, after.calls, strict=True):
        if not call.front or "weight" not in call.contraction.roles:
            continue
        visibility = _visibility(call, before.inputs[0].numel())
        if visibility is None:
            continue
        value, other = call.contraction.factors[0].flatten(1), moved.contraction.factors[0].flatten(1)
        tangent = call.axes[0].samples_first(tangents[call.factors[0]], before.num_samples)
        outer = isinstance(call.contraction, LinearContraction) and call.contraction.factors[0].shape[1] == 1
        precision, seen = visibility
        weight = call.sources["weight"].name
        layers.append(FrontLayer(value, other - value, tangent.reshape(value.shape), precision, weight, seen, outer))
    return layers


def _visibility(call: BoundCall, dimension: int) -> tuple[Tensor, float] | None:
    """Precision of one entry of what enters a layer, [B], and the share of d directions that its gradient can show."""
    contraction = call.contraction
    if isinstance(contraction, LinearContraction):
        a, b = contraction.factors
        precision, directions = b.double().square().sum(2).mean(1), min(b.shape[1:]) * a.shape[2]
    elif isinstance(contraction, ConvolutionContraction | SharedConvolutionContraction):
        a, b = contraction.factors
        # Every place of the output has a window of entries, with its own signal.
        entries, windows = a[0].numel(), contraction.weight_shape[1:].numel() * contraction.groups
        positions = entries / windows
        precision = b.double().flatten(1).square().sum(1) / positions
        directions = contraction.weight_shape.numel()
    else:
        return None
    return precision, min(1.0, directions / dimension)


def _outer_difference(b: Tensor, a: Tensor, b_after: Tensor, a_after: Tensor) -> Tensor:
    """|b' a'^T - b a^T|^2 for [B, c] and [B, n], [B], float64."""
    db, da = (b_after - b).double(), (a_after - a).double()
    n, m = (b_after + b).double() / 2, (a_after + a).double() / 2
    size = m.norm(dim=1, keepdim=True)
    unit = m / size.clamp_min(torch.finfo(m.dtype).tiny)
    along = (unit * da).sum(1, keepdim=True)
    rest = n.norm(dim=1) * (da - along * unit).norm(dim=1)
    total: Tensor = (size * db + along * n).square().sum(1) + rest.square()
    return total
