"""Transformed images T(x) of a policy (`transformation`): a random crop and flip, then the policy's entries.

As Gao et al.'s code has them, on images in [0, 1] without rounding to 8 bits: what moves out of the image is lost, and
what moves in is black; brightness scales towards or away from black, sharpness towards or away from the image smoothed
by (1 1 1, 1 5 1, 1 1 1) / 13, borders as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from riskaudit.release.transformation import LIBRARY, Entry, Transformation

# Pixels by which a random crop may move an image of any size.
PADDING = 4


def transform(images: Tensor, transformation: Transformation, positions: Sequence[int] | None = None) -> Tensor:
    """T(x) of every image.

    Args:
        images: [N, C, H, W] in [0, 1].
        transformation: the policies and the seed.
        positions: of the images in the data, which decide what is drawn for each; 0 ... N - 1 by default.
    """
    places = range(len(images)) if positions is None else positions
    pairs = zip(images, places, strict=True)
    return torch.stack([_transformed(image, transformation, place) for image, place in pairs])


def _transformed(image: Tensor, transformation: Transformation, position: int) -> Tensor:
    draws = np.random.default_rng((transformation.seed, position))
    image = _cropped(image, *draws.integers(0, 2 * PADDING + 1, 2).tolist())
    if draws.random() < 0.5:
        image = image.flip(-1)
    for number in transformation.policies[draws.integers(len(transformation.policies))]:
        image = apply_entry(image, LIBRARY[number], 1 if draws.random() < 0.5 else -1)
    return image


def _cropped(image: Tensor, top: int, left: int) -> Tensor:
    """A crop of the image's own size from the padded image."""
    height, width = image.shape[-2:]
    padded = F.pad(image, (PADDING,) * 4)
    return padded[..., top : top + height, left : left + width]


def apply_entry(image: Tensor, entry: Entry, direction: int) -> Tensor:
    """One entry of the library on an image [C, H, W], in direction 1 or -1."""
    if entry.operation == "translate-x":
        return _translated(image, direction * entry.magnitude * image.shape[-1])
    if entry.operation == "translate-y":
        return _translated(image.mT, direction * entry.magnitude * image.shape[-2]).mT
    base = torch.zeros_like(image) if entry.operation == "brightness" else _smoothed(image)
    return (base + (1 + direction * entry.magnitude) * (image - base)).clamp(0, 1)


def _translated(image: Tensor, shift: float) -> Tensor:
    """out[..., j] = image[..., j + shift], the nearest pixel, black beyond."""
    moved, width = torch.zeros_like(image), image.shape[-1]
    offset = math.floor(shift + 0.5)
    if abs(offset) < width:
        source = slice(max(0, offset), width + min(0, offset))
        moved[..., max(0, -offset) : width - max(0, offset)] = image[..., source]
    return moved


def _smoothed(image: Tensor) -> Tensor:
    kernel = torch.ones(3, 3, dtype=image.dtype, device=image.device)
    kernel[1, 1] = 5
    smoothed = image.clone()
    if min(image.shape[-2:]) > 2:
        smoothed[..., 1:-1, 1:-1] = F.conv2d(image[:, None], kernel[None, None] / 13)[:, 0]
    return smoothed
