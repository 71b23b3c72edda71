"""Convolutions in one to three dimensions: a linear layer on the windows of its input, at every place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from riskaudit.jacobian.structured.batch_axis import BatchAxis
from riskaudit.jacobian.structured.contraction import (
    Contraction,
    FormedContraction,
    Parameters,
    flattened,
    select_roles,
)
from riskaudit.jacobian.structured.layers.linear import forms_weight
from riskaudit.jacobian.structured.recording import Recorder
from riskaudit.jacobian.structured.registry import Function, UnsupportedLayer, register
from riskaudit.jacobian.structured.windows import Windows, differentiable_columns, differentiable_convolution

aten = torch.ops.aten


@final
class ConvolutionContraction(Contraction):
    """Factors a [B, C, *size] and b [B, c, *places]; the weight is [c, C / groups, *kernel].

    Where R images belong to a sample they are [B, R, C, *size] and [B, R, c, *places]. Inside, windows are
    columns [B * groups, C / groups * prod(kernel), T], T the places in all images of a sample.

    Args:
        factors: a and b; a may also come as its columns [B, C * prod(kernel), T] or [B, R, ...], with
            ``windows`` None.
        roles: see `Contraction`.
        weight_shape: see above.
        windows: the geometry.
        groups: of channels.
    """

    def __init__(
        self,
        factors: Sequence[Tensor],
        roles: frozenset[str],
        weight_shape: torch.Size,
        windows: Windows | None,
        groups: int,
    ) -> None:
        super().__init__(factors, roles)
        self.windows, self.groups, self.weight_shape = windows, groups, weight_shape
        a, b = factors
        self.repeats = a.shape[1] if b.ndim > len(weight_shape) else 1
        self.b = self._signals(b)
        self._gram_of_inputs: Tensor | None = None
        self._gram_of_signals: Tensor | None = None
        if "weight" in roles:
            self.columns = self._columns(a)
            if not forms_weight(self.b.shape[2], self.columns.shape[1], self.b.shape[1]):
                self._gram_of_inputs = torch.bmm(self.columns.mT, self.columns)
                self._gram_of_signals = torch.bmm(self.b.mT, self.b)

    @override
    def gradient(self) -> Parameters:
        return select_roles(
            self.roles,
            weight=lambda: self._weight(torch.bmm(self.b, self.columns.mT)),
            bias=lambda: self._bias(self.b),
        )

    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """U = db a^T + b da^T on columns."""
        da, db = tangents[0], self._signals(tangents[1])
        return select_roles(
            self.roles,
            weight=lambda: self._weight(torch.bmm(db, self.columns.mT).baddbmm_(self.b, self._columns(da).mT)),
            bias=lambda: self._bias(db),
        )

    def cotangent(self, cotangents: Mapping[str, Tensor]) -> list[Tensor]:
        """U^T b, put back in place, and U a."""
        inputs, signals = torch.zeros_like(self.factors[0]), torch.zeros_like(self.b)
        if "weight" in cotangents:
            weight = cotangents["weight"].reshape(-1, self.b.shape[1], self.columns.shape[1])
            inputs = self._images(torch.bmm(weight.mT, self.b))
            signals = torch.bmm(weight, self.columns)
        return [inputs, self._as_signals(signals, cotangents.get("bias"))]

    @override
    def rotated_tangent(self, tangents: Sequence[Tensor]) -> Tensor:
        return flattened(self.tangent(tangents))

    @override
    def held_numbers(self) -> int:
        held = [self._gram_of_inputs, self._gram_of_signals]
        if "weight" in self.roles and self.windows is not None:
            held.append(self.columns)
        return sum(tensor.numel() for tensor in held if tensor is not None)

    def gram(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        """Over positions where that is cheaper: a db^T b + da b^T b and b da^T a + db a^T a."""
        if self._gram_of_inputs is None or self._gram_of_signals is None:
            return self.cotangent(self.tangent(tangents))
        columns, signals = self._columns(tangents[0]), self._signals(tangents[1])
        inputs = torch.bmm(columns, self._gram_of_signals)
        inputs.baddbmm_(self.columns, torch.bmm(signals.mT, self.b))
        back = torch.bmm(signals, self._gram_of_inputs)
        back.baddbmm_(self.b, torch.bmm(columns.mT, self.columns))
        bias = self._bias(signals) if "bias" in self.roles else None
        return [self._images(inputs), self._as_signals(back, bias)]

    def _columns(self, images: Tensor) -> Tensor:
        images = self._merged(images)
        columns = images if self.windows is None else self.windows.columns(images)
        columns = self._joined(columns)
        return columns.reshape(-1, columns.shape[1] // self.groups, columns.shape[2])

    def _images(self, columns: Tensor) -> Tensor:
        shape = self.factors[0].shape
        columns = self._cut(columns.reshape(shape[0], -1, columns.shape[2]))
        if self.windows is not None:
            columns = self.windows.images(columns, self._merged(self.factors[0]).shape)
        return columns.reshape(shape)

    def _signals(self, signals: Tensor) -> Tensor:
        signals = self._joined(self._merged(signals).flatten(2))
        return signals.reshape(signals.shape[0] * self.groups, signals.shape[1] // self.groups, -1)

    def _merged(self, factor: Tensor) -> Tensor:
        """[B, R, ...] as [B * R, ...]."""
        return factor if self.repeats == 1 else factor.flatten(0, 1)

    def _joined(self, columns: Tensor) -> Tensor:
        """[B * R, n, T] as [B, n, R * T]."""
        if self.repeats == 1:
            return columns
        return torch.unflatten(columns, 0, (-1, self.repeats)).movedim(1, 2).flatten(2)

    def _cut(self, columns: Tensor) -> Tensor:
        """Undo `_joined`."""
        if self.repeats == 1:
            return columns
        return torch.unflatten(columns, 2, (self.repeats, -1)).movedim(2, 1).flatten(0, 1)

    def _weight(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1, *self.weight_shape)

    def _bias(self, signals: Tensor) -> Tensor:
        """Signals [B * groups, c / groups, T] added up over places, [B, c]."""
        return signals.sum(-1).reshape(len(self.factors[1]), -1)

    def _as_signals(self, signals: Tensor, bias: Tensor | None) -> Tensor:
        """Undo `_signals`, and add the bias's part at every place."""
        b = self.factors[1]
        signals = signals.reshape(len(b), -1, signals.shape[2])
        if bias is not None:
            signals = signals + bias[..., None]
        return self._cut(signals).reshape(b.shape)


@final
class SharedConvolutionContraction(FormedContraction):
    """All R images are of one sample, as those of an upload are: torch's own convolutions, without columns.

    Factors a [1, R, C, *size] and b [1, R, c, *places]; the weight is [c, C / groups, *kernel].

    Args:
        factors: a and b.
        roles: see `Contraction`.
        weight_shape: see above.
        windows: the geometry.
        groups: of channels.
    """

    def __init__(
        self,
        factors: Sequence[Tensor],
        roles: frozenset[str],
        weight_shape: torch.Size,
        windows: Windows,
        groups: int,
    ) -> None:
        super().__init__(factors, roles)
        self.windows, self.groups, self.weight_shape = windows, groups, weight_shape

    @override
    def gradient(self) -> Parameters:
        a, b = self.factors
        return select_roles(self.roles, weight=lambda: self._weight(a, b), bias=lambda: self._bias(b))

    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """One term per factor."""
        (a, b), (da, db) = self.factors, tangents
        return select_roles(
            self.roles, weight=lambda: self._weight(a, db).add_(self._weight(da, b)), bias=lambda: self._bias(db)
        )

    def cotangent(self, cotangents: Mapping[str, Tensor]) -> list[Tensor]:
        """U transposed on b, and U on a."""
        a, b = self.factors
        inputs, signals = torch.zeros_like(a), torch.zeros_like(b)
        if "weight" in cotangents:
            (weight,) = cotangents["weight"]
            inputs = self.windows.image_cotangent(b[0], a[0], weight, self.groups)[None]
            signals = self.windows.convolve(a[0], weight, self.groups)[None]
        if "bias" in cotangents:
            signals = signals + cotangents["bias"].reshape(-1, *(1,) * (b.ndim - 3))
        return [inputs, signals]

    @override
    def held_numbers(self) -> int:
        return 0

    def _weight(self, images: Tensor, signals: Tensor) -> Tensor:
        shaped = images.new_empty(()).expand(self.weight_shape)
        return self.windows.weight_cotangent(signals[0], images[0], shaped, self.groups)[None]

    def _bias(self, signals: Tensor) -> Tensor:
        return signals.sum([1, *range(3, signals.ndim)])


def _convolution(num_dims: int, convolve: Callable[..., Tensor]) -> Function:
    def layer(
        recorder: Recorder,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sequence[int] | int = 1,
        padding: Sequence[int] | int | str = 0,
        dilation: Sequence[int] | int = 1,
        groups: int = 1,
    ) -> Tensor:
        if input.ndim != num_dims + 2:
            raise UnsupportedLayer("a convolution of a single image without a batch")
        kernel, strides, dilations = tuple(weight.shape[2:]), _per_dim(stride, num_dims), _per_dim(dilation, num_dims)
        if padding == "same":
            total = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
            # More behind than before where it is odd, as torch does.
            input = F.pad(input, [amount for t in reversed(total) for amount in (t // 2, t - t // 2)])
        borders = _per_dim(0 if isinstance(padding, str) else padding, num_dims)
        windows, shape = Windows(kernel, strides, borders, dilations), weight.shape
        # None where the contraction is given columns.
        to_columns: Windows | None = windows
        if takes_columns(input):
            to_columns, output_size = None, windows.output_size(input.shape[2:])
            input = differentiable_columns(input, windows)
            output = torch.unflatten(_columns_times(input, weight, groups), 2, output_size)
            if bias is not None:
                output = output + bias.reshape(-1, *(1,) * num_dims)
        else:
            constant = not weight.requires_grad and (bias is None or not bias.requires_grad)
            output = (
                differentiable_convolution(input, weight, bias, windows, groups)
                if constant
                else convolve(input, weight, bias, strides, borders, dilations, groups)
            )

        def make(factors: list[Tensor], roles: frozenset[str], axis: BatchAxis) -> Contraction:
            if axis.dim != 0:
                raise UnsupportedLayer("a convolution whose samples aren't along its first axis")
            if to_columns is not None and _is_shared(factors[1], shape, groups):
                return SharedConvolutionContraction(factors, roles, shape, to_columns, groups)
            return ConvolutionContraction(factors, roles, shape, to_columns, groups)

        return recorder.record_call(f"Conv{num_dims}d", [input], output, make, weight=weight, bias=bias)

    return layer


def takes_columns(images: Tensor) -> bool:
    """Whether convolutions are products of matrices with columns.

    torch's own in double precision on a processor is several times slower, and the contraction needs columns anyway.
    """
    return images.device.type == "cpu" and images.dtype == torch.float64


def _is_shared(signals: Tensor, weight_shape: torch.Size, groups: int) -> bool:
    """Whether all of several images [B, R, c, *places] are of one sample, and its tangent of the weight is formed."""
    if signals.ndim == len(weight_shape) or len(signals) > 1:
        return False
    positions = signals[0].numel() // weight_shape[0]
    return forms_weight(positions, weight_shape[1:].numel(), weight_shape[0] // groups)


def _columns_times(columns: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A convolution of columns [N, C * prod(kernel), T] with a weight [c, C / groups, *kernel]; returns [N, c, T]."""
    if groups == 1:
        return weight.flatten(1) @ columns
    by_group = torch.unflatten(weight.flatten(1), 0, (groups, -1)), torch.unflatten(columns, 1, (groups, -1))
    return torch.matmul(*by_group).flatten(1, 2)


for _num_dims, _functions in enumerate(
    ((F.conv1d, aten.conv1d.default), (F.conv2d, aten.conv2d.default), (F.conv3d, aten.conv3d.default)), 1
):
    register(*_functions)(_convolution(_num_dims, _functions[0]))


def _per_dim(value: Sequence[int] | int, num_dims: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * num_dims
    return tuple(value) if len(value) == num_dims else tuple(value) * num_dims
