"""The windows that a convolution sees, as columns, and the transpose of that map, in any number of dimensions."""

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


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
