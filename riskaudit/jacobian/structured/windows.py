"""The windows that a convolution sees, as columns, and the transpose of that map, in any number of dimensions.

Where all images of a batch share one weight, or one tangent of it, torch's own convolutions need no columns.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# From this length of a row, and up to this many entries of a window, adding entry by entry is faster.
LONG_ROW, FEW_ENTRIES = 16, 9


@dataclass(frozen=True)
class Windows:
    """Geometry of a convolution: one entry per spatial dimension; ``padding`` is the same on both sides."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def output_size(self, size: torch.Size) -> tuple[int, ...]:
        """Output size for a spatial input size."""
        geometry = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry)

    def columns(self, images: Tensor) -> Tensor:
        """[N, C, *size] to [N, C * prod(kernel), T], T the number of places, in the order of a weight's entries."""
        output_size = self.output_size(images.shape[2:])
        padded = self._padded(images)
        step = padded.stride()
        inner = [pace * d for pace, d in zip(step[2:], self.dilation, strict=True)]
        outer = [pace * s for pace, s in zip(step[2:], self.stride, strict=True)]
        # A view of all windows, so that the copy is the only pass over memory.
        view = padded.as_strided(
            (*padded.shape[:2], *self.kernel, *output_size), (*step[:2], *inner, *outer), padded.storage_offset()
        )
        return view.reshape(len(images), -1, _product(output_size))

    def images(self, columns: Tensor, shape: torch.Size) -> Tensor:
        """Transpose of `columns`: entries that come from one place are summed; ``shape`` is [N, C, *size]."""
        output_size = self.output_size(shape[2:])
        if len(self.kernel) == 2 and (
            columns.is_cuda or output_size[-1] < LONG_ROW or _product(self.kernel) > FEW_ENTRIES
        ):
            # Where rows are short, or the window has many entries, one pass beats one addition for each entry.
            geometry = {"dilation": self.dilation, "padding": self.padding, "stride": self.stride}
            return F.fold(columns, shape[2:], self.kernel, **geometry)
        windows = columns.reshape(*shape[:2], *self.kernel, *output_size)
        size = [n + 2 * p for n, p in zip(shape[2:], self.padding, strict=True)]
        padded = columns.new_zeros((*shape[:2], *size))
        for offset in itertools.product(*(range(k) for k in self.kernel)):
            reached = tuple(
                slice(o * d, o * d + s * (n - 1) + 1, s)
                for o, d, s, n in zip(offset, self.dilation, self.stride, output_size, strict=True)
            )
            seen: tuple[slice | int, ...] = (slice(None), slice(None), *offset)
            padded[:, :, *reached] += windows[seen]
        inside = tuple(slice(p, p + n) for p, n in zip(self.padding, shape[2:], strict=True))
        return padded[:, :, *inside]

    def convolve(self, images: Tensor, weight: Tensor, groups: int, bias: Tensor | None = None) -> Tensor:
        """The convolution of images [N, C, *size] with one weight [c, C / groups, *kernel]; returns [N, c, *places]."""
        geometry = self.stride, self.padding, self.dilation
        return torch.convolution(images, weight, bias, *geometry, False, (0,) * len(self.kernel), groups)

    def image_cotangent(self, signals: Tensor, images: Tensor, weight: Tensor, groups: int) -> Tensor:
        """The transpose of `convolve` in the images, of which only the shape counts; returns [N, C, *size]."""
        return self._cotangents(signals, images, weight, groups, (True, False))[0]

    def weight_cotangent(self, signals: Tensor, images: Tensor, weight: Tensor, groups: int) -> Tensor:
        """The transpose of `convolve` in the weight, of which only the shape counts."""
        return self._cotangents(signals, images, weight, groups, (False, True))[1]

    def _cotangents(
        self, signals: Tensor, images: Tensor, weight: Tensor, groups: int, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        geometry = self.stride, self.padding, self.dilation
        found = torch.ops.aten.convolution_backward(
            signals, images, weight, None, *geometry, False, (0,) * len(self.kernel), groups, (*wanted, False)
        )
        return found[0], found[1]

    def _padded(self, images: Tensor) -> Tensor:
        if not any(self.padding):
            return images.contiguous()
        amounts = [amount for p in reversed(self.padding) for amount in (p, p)]
        return F.pad(images, amounts)


class _Columns(torch.autograd.Function):
    """`Windows.columns`, whose derivative is as cheap as itself, however often it is differentiated."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, windows: Windows) -> Tensor:
        ctx.windows, ctx.shape = windows, images.shape
        return windows.columns(images)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Images.apply(gradient, ctx.windows, ctx.shape), None  # type: ignore[no-untyped-call]


class _Images(torch.autograd.Function):
    """`Windows.images` likewise."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, windows: Windows, shape: torch.Size) -> Tensor:
        ctx.windows = windows
        return windows.images(columns, shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Columns.apply(gradient, ctx.windows), None, None  # type: ignore[no-untyped-call]


def differentiable_columns(images: Tensor, windows: Windows) -> Tensor:
    """`Windows.columns` with a graph."""
    columns: Tensor = _Columns.apply(images, windows)  # type: ignore[no-untyped-call]
    return columns


class _Convolution(torch.autograd.Function):
    """`Windows.convolve` with a constant weight: torch's own second derivative computes a part of it in vain."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int) -> Tensor:
        ctx.weight, ctx.windows, ctx.groups, ctx.shape = weight, windows, groups, images.shape
        return windows.convolve(images, weight, groups, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pulled = _ImageCotangent.apply(gradient, ctx.weight, ctx.windows, ctx.groups, ctx.shape)  # type: ignore[no-untyped-call]
        return pulled, None, None, None, None


class _ImageCotangent(torch.autograd.Function):
    """`Windows.image_cotangent` likewise."""

    @staticmethod
    def forward(ctx: Any, signals: Tensor, weight: Tensor, windows: Windows, groups: int, shape: torch.Size) -> Tensor:
        ctx.weight, ctx.windows, ctx.groups = weight, windows, groups
        return windows.image_cotangent(signals, signals.new_empty(()).expand(shape), weight, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pushed = _Convolution.apply(gradient, ctx.weight, None, ctx.windows, ctx.groups)  # type: ignore[no-untyped-call]
        return pushed, None, None, None, None


def differentiable_convolution(
    images: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int
) -> Tensor:
    """`Windows.convolve` with a graph in the images; weight and bias are constants."""
    convolved: Tensor = _Convolution.apply(images, weight, bias, windows, groups)  # type: ignore[no-untyped-call]
    return convolved


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
