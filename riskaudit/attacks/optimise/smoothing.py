"""Continuation over smoothed kinks: releases of ReLU networks, which jump, as limits of releases that don't.

The gradient of a ReLU network jumps where a unit switches, and between two jumps its derivative knows nothing of them:
a descent ends wherever it switched a unit the wrong way. Here the same network's kinks are rounded off over a width
that goes to 0 in stages, each begun where the last one ended (graduated optimisation; by convolution with a Gaussian:
Mobahi and Fisher, EMMCVPR 2015). The rounded network's derivative does see a unit that is about to switch. What it
computes differs from what was released, which each stage reckons with as with noise.

relu(x) becomes E relu(x + s z) with z standard normal, x Phi(x / s) + s phi(x / s), and with it all functions of torch
that are made of straight pieces; a maximum over a window becomes s log sum exp(. / s) over it.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Observation
from riskaudit.copying import copy_model
from riskaudit.release.interception import Interception

# Width of the kinks in the first stage, as a share of the root mean squares of what enters them, and in all stages, as
# shares of that. One width for all: widths in proportion to what enters each leave the first layers' units, whose
# switching jumps most, too sharp (a trained lenet: 4 of 12 samples near the prediction instead of 9).
WIDEST = 1 / 4
SHARES = tuple(2.0**-stage for stage in range(8))
# Keeps quotients finite where nothing but zeros enters.
TINY = 1e-30


class _Kinks(Interception):
    """Within this context what is made of straight pieces is computed by `relu` and `largest`."""

    @abstractmethod
    def relu(self, x: Tensor) -> Tensor:
        """What stands for x where x is positive, and for 0 elsewhere."""

    @abstractmethod
    def largest(self, windows: Tensor) -> Tensor:
        """What stands for the maximum over the first axis."""

    @override
    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        pieces = _PIECES.get(function)
        result = None if pieces is None else pieces(self, *args, **kwargs)
        if result is None:
            return function(*args, **kwargs)
        if function in _IN_PLACE or kwargs.get("inplace", False):
            return args[0].copy_(result)
        return result


@final
class _Measured(_Kinks):
    """Finds the mean square of what enters every kink."""

    def __init__(self) -> None:
        super().__init__()
        self.squares: list[float] = []

    @override
    def relu(self, x: Tensor) -> Tensor:
        self.squares.append(float(x.double().square().mean()))
        return x.clamp_min(0)

    @override
    def largest(self, windows: Tensor) -> Tensor:
        self.squares.append(float(windows[windows.isfinite()].double().square().mean()))
        return windows.amax(0)


@final
class _Rounded(_Kinks):
    """Rounds kinks off over a width."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = max(width, TINY)

    @override
    def relu(self, x: Tensor) -> Tensor:
        z = x / self.width
        density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return 0.5 * x * (1 + torch.erf(z / math.sqrt(2))) + self.width * density

    @override
    def largest(self, windows: Tensor) -> Tensor:
        most = windows.detach().amax(0)
        return most + self.width * torch.exp((windows - most) / self.width).sum(0).log()


# Like the function of torch that it stands for, with what makes the kinks in front; None where it stands for none.
_Pieces: TypeAlias = Callable[..., Tensor | None]
_PIECES: dict[Callable[..., Any], _Pieces] = {}
_IN_PLACE: set[Callable[..., Any]] = {
    torch.relu_, Tensor.relu_, F.relu_, Tensor.abs_, torch.abs_, Tensor.clamp_, torch.clamp_, Tensor.clamp_min_,
    torch.clamp_min_, F.leaky_relu_, F.hardtanh_,
}  # fmt: skip


_AnyPieces = TypeVar("_AnyPieces", bound=_Pieces)


def _stands_for(*functions: Callable[..., Any]) -> Callable[[_AnyPieces], _AnyPieces]:
    def add(pieces: _AnyPieces) -> _AnyPieces:
        _PIECES.update(dict.fromkeys(functions, pieces))
        return pieces

    return add


@_stands_for(F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
def _relu(kinks: _Kinks, input: Tensor, inplace: bool = False) -> Tensor:
    return kinks.relu(input)


@_stands_for(F.leaky_relu, F.leaky_relu_)
def _leaky_relu(kinks: _Kinks, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return negative_slope * input + (1 - negative_slope) * kinks.relu(input)


@_stands_for(torch.abs, torch.abs_, torch.absolute, Tensor.abs, Tensor.abs_, Tensor.absolute, Tensor.__abs__)
def _abs(kinks: _Kinks, input: Tensor) -> Tensor | None:
    return kinks.relu(input) + kinks.relu(-input) if input.is_floating_point() else None


@_stands_for(F.hardtanh, F.hardtanh_)
def _hardtanh(
    kinks: _Kinks, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    rising: Tensor = kinks.relu(input - min_val) - kinks.relu(input - max_val)
    return min_val + rising


@_stands_for(F.relu6)
def _relu6(kinks: _Kinks, input: Tensor, inplace: bool = False) -> Tensor:
    return _hardtanh(kinks, input, 0.0, 6.0)


@_stands_for(F.hardswish)
def _hardswish(kinks: _Kinks, input: Tensor, inplace: bool = False) -> Tensor:
    return input * _hardtanh(kinks, input + 3, 0.0, 6.0) / 6


@_stands_for(torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_)
def _clamp_min(kinks: _Kinks, input: Tensor, min: Any = None) -> Tensor | None:
    return _clamp(kinks, input, min)


@_stands_for(torch.clamp, torch.clamp_, torch.clip, Tensor.clamp, Tensor.clamp_, Tensor.clip)
def _clamp(kinks: _Kinks, input: Tensor, min: Any = None, max: Any = None) -> Tensor | None:
    bounds = [bound for bound in (min, max) if bound is not None]
    if not input.is_floating_point() or not all(isinstance(bound, (int, float)) for bound in bounds):
        return None
    above: Tensor = input if min is None else min + kinks.relu(input - min)
    return above if max is None else above - kinks.relu(input - max)


@_stands_for(torch.maximum, Tensor.maximum)
def _maximum(kinks: _Kinks, input: Tensor, other: Tensor) -> Tensor | None:
    return other + kinks.relu(input - other) if (input + other).is_floating_point() else None


@_stands_for(torch.minimum, Tensor.minimum)
def _minimum(kinks: _Kinks, input: Tensor, other: Tensor) -> Tensor | None:
    return other - kinks.relu(other - input) if (input + other).is_floating_point() else None


@_stands_for(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
def _max_pool(
    kinks: _Kinks,
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    axes = input.dim() - 2
    if ceil_mode or return_indices or axes < 1:
        return None
    sizes, pads, gaps = (_each(value, axes) for value in (kernel_size, padding, dilation))
    steps = _each(stride, axes) if stride else sizes
    padded = F.pad(input, [pad for pad in reversed(pads) for _ in range(2)], value=-math.inf) if any(pads) else input
    # Where the windows' first entries begin, in each axis, and where their last ones end.
    ends = [total - gap * (size - 1) for total, gap, size in zip(padded.shape[-axes:], gaps, sizes, strict=True)]
    shifts = itertools.product(*(range(0, gap * size, gap) for gap, size in zip(gaps, sizes, strict=True)))
    windows = []
    for shift in shifts:
        window = padded
        for axis, (at, end, step) in enumerate(zip(shift, ends, steps, strict=True), padded.dim() - axes):
            window = window.narrow(axis, at, end)[(slice(None),) * axis + (slice(None, None, step),)]
        windows.append(window)
    return kinks.largest(torch.stack(windows))


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def widest_kinks(observation: Observation) -> float | None:
    """Width of the kinks in the first stage; None for a model without kinks.

    It goes by what enters them at the prior's mean: a share of the geometric mean of the root mean squares.

    Args:
        observation: with labels.
    """
    measured = _Measured()
    batch = observation.batch(observation.bound_prior().mean)
    with measured, torch.no_grad():
        observation.release.run(observation.release.parameters, batch.inputs)
    logarithms = [0.5 * math.log(square) for square in measured.squares if 0 < square < math.inf]
    return WIDEST * math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def rounded_off(observation: Observation, width: float) -> Observation:
    """The same observation of a model whose kinks have this width."""
    model = copy_model(observation.release.model)
    inner = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Rounded(width):
            return inner(*args, **kwargs)

    model.forward = forward
    release = observation.release.with_model(model)
    return replace(observation, jacobian=observation.jacobian.of(release))
