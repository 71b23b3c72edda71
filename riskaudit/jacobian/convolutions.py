"""Convolutions of many tangents at once as matrix products, where the kernels are slow: float64 on the CPU.

A convolution y = W * x and its gradients for signals s at the output go by kernels that lay out every window of every
image [N, c, H, W], whatever else is small. Where there are many tangents of few samples, they stand beside each other
as images or as channels, and the other argument is small. Two other forms cost less then:

* few weights, many images hardly larger than a window: W as the matrix [o h w, c H W] of the whole layer;
* few signals, many channels c: windows of the signals, laid out once, give dL/dx = W^T s and dL/dW = s x^T in one
  product each. They are those of a convolution that undoes the strides, with zeros between the signals.

The dispatcher sees what vmap made of the tangents, so that nothing above it has to know. Looking at every call costs
some 50 microseconds each, so that few tangents are better off without. 32 columns of J and of J^T through local
training of a LeNet take two thirds of what they take by the kernels, or less (benchmarks/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

# Multiplications of a layer's whole matrix, at most, for one of the convolution.
MOST_DENSE = 4
# What a kernel lays out, for each number laid out here, where this pays.
WORTHWHILE = 2

Pair = tuple[int, int]
Sizes = list[int]


class Geometry(NamedTuple):
    """What of a convolution isn't in its tensors.

    Attributes:
        size: of the images, H and W.
        kernel: of the windows.
        stride: see `torch.nn.functional.conv2d`, as the next two.
        padding: on either side.
        dilation: between a window's entries.
    """

    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def output(self) -> Pair:
        """h and w."""
        rows, columns = (
            (size + 2 * pad - apart * (window - 1) - 1) // step + 1
            for size, window, step, pad, apart in zip(*self, strict=True)
        )
        return rows, columns

    @property
    def num_places(self) -> int:
        """H W."""
        return self.size[0] * self.size[1]

    @property
    def window(self) -> int:
        """Entries of a window."""
        return self.kernel[0] * self.kernel[1]

    def suits_matrix(self, num_images: int, num_outputs: int) -> bool:
        """Whether a layer's whole matrix is worth it, for so many images and output channels."""
        made = num_outputs * self.num_places
        return self.num_places <= MOST_DENSE * self.window and num_images * self.window >= WORTHWHILE * made

    def suits_signal_windows(self, channels: int, num_outputs: int) -> bool:
        """Whether windows of signals are fewer than windows of images."""
        rows, columns = self.output
        return channels * rows * columns >= WORTHWHILE * num_outputs * self.num_places


@final
class MatrixConvolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context convolutions of float64 images on the CPU take whichever form is cheaper."""

    @override
    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        replacement = _REPLACEMENTS.get(func)
        made = replacement(*args) if replacement is not None and not kwargs else None
        return func(*args, **(kwargs or {})) if made is None else made


def _convolution(
    inputs: Tensor, weights: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, dilation: Sizes,
    transposed: bool, output_padding: Sizes, groups: int,
) -> Tensor | None:  # fmt: skip
    if bias is not None or not _is_slow(inputs, groups):
        return None
    kernel = (weights.shape[2], weights.shape[3])
    if not transposed:
        size = (inputs.shape[2], inputs.shape[3])
        return _convolved(inputs, weights, Geometry(size, kernel, *map(_pair, (stride, padding, dilation))))
    rows, columns = (
        (count - 1) * step - 2 * pad + apart * (window - 1) + more + 1
        for count, window, step, pad, apart, more in zip(
            inputs.shape[2:], kernel, stride, padding, dilation, output_padding, strict=True
        )
    )
    return input_gradient(inputs, weights, Geometry((rows, columns), kernel, *map(_pair, (stride, padding, dilation))))


def _convolution_backward(
    signals: Tensor, inputs: Tensor, weights: Tensor, bias_sizes: Sizes | None, stride: Sizes, padding: Sizes,
    dilation: Sizes, transposed: bool, output_padding: Sizes, groups: int, wanted: list[bool],
) -> tuple[Tensor | None, Tensor | None, None] | None:  # fmt: skip
    if transposed or wanted[0] == wanted[1] or wanted[2] or not _is_slow(inputs, groups):
        return None
    size, kernel = (inputs.shape[2], inputs.shape[3]), (weights.shape[2], weights.shape[3])
    geometry = Geometry(size, kernel, *map(_pair, (stride, padding, dilation)))
    if wanted[0]:
        of_inputs = input_gradient(signals, weights, geometry)
        return None if of_inputs is None else (of_inputs, None, None)
    of_weights = weight_gradient(signals, inputs, geometry)
    return None if of_weights is None else (None, of_weights, None)


_REPLACEMENTS: Mapping[Any, Callable[..., Any]] = {
    torch.ops.aten.convolution.default: _convolution,
    torch.ops.aten.convolution_backward.default: _convolution_backward,
}


def _is_slow(inputs: Tensor, groups: int) -> bool:
    is_image = inputs.ndim == 4 and groups == 1 and inputs.numel() > 0
    return is_image and inputs.dtype == torch.float64 and inputs.device.type == "cpu"


def _pair(sizes: Sizes) -> Pair:
    first, second = sizes
    return first, second


def _convolved(inputs: Tensor, weights: Tensor, geometry: Geometry) -> Tensor | None:
    """W * x for x [N, c, H, W] and W [o, c, kh, kw]: [N, o, h, w]; None where the kernels are as good."""
    if not geometry.suits_matrix(len(inputs), len(weights)):
        return None
    product = inputs.flatten(1) @ _matrix(weights, geometry).mT
    return product.reshape(len(inputs), len(weights), *geometry.output)


def input_gradient(signals: Tensor, weights: Tensor, geometry: Geometry) -> Tensor | None:
    """dL/dx for s [N, o, h, w] and W [o, c, kh, kw]: [N, c, H, W]; None where the kernels are as good."""
    (num_outputs, channels), count = weights.shape[:2], len(signals)
    if geometry.suits_matrix(count, num_outputs):
        product = signals.flatten(1) @ _matrix(weights, geometry)
        return product.reshape(count, channels, *geometry.size)
    if not geometry.suits_signal_windows(channels, num_outputs):
        return None
    product = weights.transpose(0, 1).flatten(1) @ _signal_windows(signals, geometry)
    return product.reshape(channels, count, *geometry.size).transpose(0, 1)


def weight_gradient(signals: Tensor, inputs: Tensor, geometry: Geometry) -> Tensor | None:
    """dL/dW for s [N, o, h, w] and x [N, c, H, W]: [o, c, kh, kw]; None where the kernels are as good."""
    num_outputs, channels = signals.shape[1], inputs.shape[1]
    if not geometry.suits_signal_windows(channels, num_outputs):
        return None
    product = inputs.transpose(0, 1).flatten(1) @ _signal_windows(signals, geometry).mT
    return product.reshape(channels, num_outputs, *geometry.kernel).transpose(0, 1)


def _matrix(weights: Tensor, geometry: Geometry) -> Tensor:
    """The whole layer as a matrix [o h w, c H W]."""
    num_outputs, channels = weights.shape[:2]
    entries = _entries(geometry)
    # A last entry 0 stands for all places outside of a window.
    gathered = F.pad(weights.flatten(2), (0, 1))[:, :, entries]
    return gathered.transpose(1, 2).reshape(num_outputs * len(entries), channels * entries.shape[1])


@lru_cache(maxsize=64)
def _entries(geometry: Geometry) -> Tensor:
    """Which of a window's entries lies on which place of the image, for every place of the output, [h w, H W]."""
    places = torch.arange(1, geometry.num_places + 1, dtype=torch.float64).reshape(1, 1, *geometry.size)
    windows = F.unfold(places, geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)[0].long().mT
    entries = torch.full((len(windows), geometry.num_places + 1), geometry.window)
    return entries.scatter_(1, windows, torch.arange(geometry.window).expand_as(windows))[:, 1:]


def _signal_windows(signals: Tensor, geometry: Geometry) -> Tensor:
    """Windows of signals [N, o, h, w] whose products with weights are gradients: [o kh kw, N H W]."""
    pads, apart = list[int](), signals
    for axis, (size, window, step, pad, dilation) in enumerate(zip(*geometry, strict=True)):
        apart = _with_zeros(apart, 2 + axis, step)
        before = dilation * (window - 1) - pad
        pads = [before, size + pad - apart.shape[2 + axis], *pads]
    windows = F.unfold(F.pad(apart, pads), geometry.kernel, geometry.dilation)
    entries = windows.reshape(len(signals), signals.shape[1], *geometry.kernel, -1).flip(2, 3)
    return entries.flatten(1, 3).transpose(0, 1).flatten(1)


def _with_zeros(signals: Tensor, axis: int, step: int) -> Tensor:
    """With step - 1 zeros between neighbours along an axis."""
    if step == 1:
        return signals
    zeros = signals.new_zeros(*signals.shape[: axis + 1], step - 1, *signals.shape[axis + 1 :])
    spread = torch.cat([signals.unsqueeze(axis + 1), zeros], dim=axis + 1).flatten(axis, axis + 1)
    return spread.narrow(axis, 0, spread.shape[axis] - (step - 1))
