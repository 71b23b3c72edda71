"""Which samples are the same one: equal inputs, views of one image, or the same id.

Inputs that aren't images are compared by distance. Groups are transitive. The work is bounded: equal inputs are found
among all samples, others among the first `num_compared`. What was found of the last batches is remembered by their
digests, since a batch is assessed and then reviewed, and a client that trains on one batch reviews it every round.

Two images are one if, flipped, turned by quarters and shifted by up to `MAX_SHIFT` pixels, they are alike in one of
three maps of their small grey pictures (`riskaudit.inputs.pictures`), or if one is a crop of the other:

- grey values, up to brightness and contrast, also negative ones;
- differences of Gaussians, which noise and tone curves change little;
- the same divided by the local contrast (local contrast normalisation, Jarrett et al. 2009, "What is the best
  multi-stage architecture for object recognition?"). It is what is left of an image once every region is brought to one
  contrast: other images of things or people rarely agree in it by more than chance, whereas every tone curve, mixture
  of channels, moderate noise, compression and blend with another image leaves most of it, and an erased part leaves the
  rest as it was.

The last is believed from the lower similarity of `SAME_DETAIL` on, or from agreement in `AGREEING_AREA` of the image,
but only where it can tell strangers apart: for images of which not most is plain, and in batches whose images aren't
alike anyway, as strokes, or faces in one pose are (`_least_detail`).
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from threading import Lock

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from riskaudit.inputs.pictures import AlikePairs, alike_pairs, cropped_pairs, small_grey, turned, unit_windows

# Distance, relative to the spread of one input's own entries, up to which two inputs that aren't images are one.
SAME_VECTOR = 0.01
# Samples that are compared pair by pair, and differences of entries that this takes for vectors.
MAX_COMPARED = 1000
MAX_DIFFERENCES = 10**9
CHUNK_ROWS = 1024
# Batches whose pairs are remembered, by their inputs' digests; no input is.
REMEMBERED_BATCHES = 64
_remembered: OrderedDict[bytes, list[tuple[int, int]]] = OrderedDict()
_lock = Lock()
# Largest shift in pixels of the small picture; smaller images aren't shifted by more than an eighth of a side.
MAX_SHIFT = 2
# Smaller images have too few pixels to tell a crop from a stranger, or for other maps than the grey one.
LEAST_DETAILED_SIDE = 24
# Least correlations from which two images are one: see the rates of false alarms in docs/guard.md.
SAME_GREY, SAME_BAND, SAME_DETAIL = 0.98, 0.99, 0.72
# Where local correlations of this much cover that share of the image's area, it is one; or, of strokes too, of the part
# of its area that isn't plain.
AGREES, AGREEING_AREA = 0.9, 0.35
AGREES_CLOSELY, CLOSELY_AGREEING_PART = 0.99, 0.65
# Coarse similarities from which pairs are compared finely, and pairs per image: where details are believed, and not.
LIKELY_DETAILED, LIKELY, PAIRS_DETAILED, PAIRS = 0.4, 0.75, 20, 2
LEAST_PAIRS, LIKELY_SMALL = 256, 0.95
# Standard deviations of the maps' Gaussians in pixels, and the local contrast below which a place is plain.
BAND, DETAIL, LOCAL, LEAST_LOCAL = (1.0, 3.0), (0.85, 2.0), 2.0, 0.15
# Of an image that is plain: contrast of 3 by 3 pixels, and the share of the area.
PLAIN, PLAIN_SHARE = 0.05, 0.45
# Strangers' similarities are below their median by this many distances to the lower quartile, from so many images on.
FENCE, LEAST_BATCH, SAME_DETAIL_FEW = 10.0, 8, 0.85
# Channels and sides of what is taken for an image.
MAX_CHANNELS, MIN_SIDE = 4, 8
CHUNK_PAIRS = 256


def num_compared(inputs: Tensor) -> int:
    """How many samples of ``inputs`` [B, ...], the first ones, are compared for more than equality."""
    count, size = len(inputs), max(1, math.prod(inputs.shape[1:]))
    if not count or is_image(inputs[0]):
        return min(count, MAX_COMPARED)
    return min(count, MAX_COMPARED, math.isqrt(MAX_DIFFERENCES // size))


def duplicate_labels(inputs: Tensor, ids: Sequence[str]) -> list[int]:
    """A number per sample, the same for those that are to be audited together."""
    count = len(inputs)
    by_id: dict[str, int] = {}
    pairs = [(index, by_id.setdefault(name, index)) for index, name in enumerate(ids)]
    if count > 1:
        # The same for both zeros.
        digests = [
            hashlib.sha256((sample.detach().cpu().float() + 0.0).contiguous().numpy().tobytes()).digest()
            for sample in inputs
        ]
        by_content: dict[bytes, int] = {}
        pairs += [(index, by_content.setdefault(digest, index)) for index, digest in enumerate(digests)]
        pairs += _similar(inputs[: num_compared(inputs)].detach(), digests)
    rows, columns = zip(*pairs, strict=True)
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(count, count))
    return [int(label) for label in connected_components(graph, directed=False)[1]]


def _similar(inputs: Tensor, digests: Sequence[bytes]) -> list[tuple[int, int]]:
    """Pairs of inputs [B, ...] that aren't equal and yet one; ``digests`` are of these inputs and perhaps of more."""
    shape = repr(tuple(inputs.shape)).encode()
    key = hashlib.sha256(shape + b"".join(digests[: len(inputs)])).digest()
    with _lock:
        if key in _remembered:
            _remembered.move_to_end(key)
            return _remembered[key]
    pairs = similar_images(inputs) if is_image(inputs[0]) else _near_vectors(inputs.flatten(1).cpu().float())
    with _lock:
        _remembered[key] = pairs
        while len(_remembered) > REMEMBERED_BATCHES:
            _remembered.popitem(last=False)
    return pairs


def _near_vectors(flat: Tensor) -> list[tuple[int, int]]:
    """Pairs of rows [B, d] that differ by little of their own spread."""
    spread = (flat - flat.mean(1, keepdim=True)).norm(dim=1)
    pairs = []
    for first in range(0, len(flat), CHUNK_ROWS):
        part = slice(first, first + CHUNK_ROWS)
        distance = torch.cdist(flat[part], flat, compute_mode="donot_use_mm_for_euclid_dist")
        near = distance <= SAME_VECTOR * torch.minimum(spread[part, None], spread[None])
        pairs += [(int(i) + first, int(j)) for i, j in near.nonzero() if int(i) + first < int(j)]
    return pairs


def is_image(sample: Tensor) -> bool:
    """Whether one input [...] is taken for an image [C, H, W]."""
    return sample.ndim == 3 and sample.shape[0] <= MAX_CHANNELS and min(sample.shape[1:]) >= MIN_SIDE


def similar_images(images: Tensor) -> list[tuple[int, int]]:
    """Pairs of images [B, C, H, W] that are views of one another."""
    small = small_grey(images)
    if min(small.shape[1:]) < LEAST_DETAILED_SIDE:
        likely = _aligned_pairs(small, 1, LIKELY_SMALL)
        views = likely.pairs[likely.similarity >= SAME_GREY]
    else:
        views = torch.cat([_detailed_views(small), cropped_pairs(small)])
    return [(int(first), int(second)) for first, second in views]


def _detailed_views(small: Tensor) -> Tensor:
    """Pairs [N, 2] of images [B, h, w] that agree in one of the maps."""
    maps = _maps(small)
    likely = _aligned_pairs(maps[2], 2, LIKELY_DETAILED)
    least = _least_detail(likely.all_similarities, len(small))
    start, most = (LIKELY_DETAILED, PAIRS_DETAILED) if least <= 1 else (LIKELY, PAIRS)
    likely = likely.select(start, max(LEAST_PAIRS, most * len(small)))
    mean, square = (torch.nn.functional.avg_pool2d(each[:, None], 3, 1) for each in (small, small.square()))
    rich, windows = (
        ((square - mean.square()).clamp_min(0).sqrt() < PLAIN).float().mean((1, 2, 3)) <= PLAIN_SHARE,
        _Aligned(maps),
    )
    views = [likely.pairs.new_zeros(0, 2)]
    for rows in torch.split(torch.arange(len(likely.pairs)), CHUNK_PAIRS):
        pairs = likely.pairs[rows]
        first, second = windows(pairs, likely.reference[rows], likely.template[rows])
        grey, band, detail = (unit_windows(first) * unit_windows(second)).sum(-1).abs()
        area, part = _agreement(first[2], second[2])
        same = (grey >= SAME_GREY) | (band >= SAME_BAND) | (part >= CLOSELY_AGREEING_PART)
        by_detail = (detail >= least) | ((area >= AGREEING_AREA) & (least <= SAME_DETAIL))
        views.append(pairs[same | (by_detail & rich[pairs].any(1))])
    return torch.cat(views)


def _least_detail(similarities: Tensor, count: int) -> float:
    """Similarity from which details of two of ``count`` images are one, given all pairs' [M]; above 1 where none is."""
    if count < LEAST_BATCH:
        return SAME_DETAIL_FEW
    quarter, half = (float(each) for each in torch.quantile(similarities, torch.tensor([0.25, 0.5])))
    return max(SAME_DETAIL, half + FENCE * (half - quarter))


def _maps(small: Tensor) -> Tensor:
    """Grey values, differences of Gaussians, and these over the local contrast [3, B, h, w] of images [B, h, w]."""
    band = _blurred(small, BAND[0]) - _blurred(small, BAND[1])
    detail = _blurred(small, DETAIL[0]) - _blurred(small, DETAIL[1])
    local = (_blurred(detail.square(), LOCAL) + LEAST_LOCAL**2).sqrt()
    return torch.stack([small, band / band.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-6), detail / local])


def _blurred(images: Tensor, std: float) -> Tensor:
    """Images [..., h, w] under a Gaussian of this standard deviation, in pixels."""
    rows, columns = (_gaussian(side, std) for side in images.shape[-2:])
    return rows @ images @ columns.T


@cache
def _gaussian(side: int, std: float) -> Tensor:
    """Weights [side, side] of all pixels in each."""
    positions = torch.arange(side, dtype=torch.float32)
    weights = torch.exp(-(positions[:, None] - positions).square() / (2 * std**2))
    return weights / weights.sum(1, keepdim=True)


def _margin(images: Tensor) -> int:
    return min(MAX_SHIFT, min(images.shape[-2:]) // 8)


def _shifted(images: Tensor) -> Tensor:
    """Windows of images [..., h, w] in all shifts [..., n, n, h - n + 1, w - n + 1], as a view."""
    margin = _margin(images)
    height, width = (side - 2 * margin for side in images.shape[-2:])
    return images.unfold(-2, height, 1).unfold(-2, width, 1)


def _aligned_pairs(images: Tensor, stride: int, least: float) -> AlikePairs:
    """Pairs of images [B, h, w] in the flip, turn and shift that makes them most alike at every ``stride``-th pixel."""
    margin = _margin(images)
    windows = _shifted(images)[..., ::stride, ::stride].flatten(1, 2)
    middle = _shifted(torch.stack(turned(images), 1))[:, :, margin, margin, ::stride, ::stride]
    return alike_pairs(unit_windows(middle), unit_windows(windows), least, ordered=False)


class _Aligned:
    """The windows of maps [K, B, h, w] in which pairs of images are compared."""

    def __init__(self, maps: Tensor) -> None:
        margin = _margin(maps)
        self._number = 2 * margin + 1
        self._shifted = _shifted(maps)
        self._turned = torch.stack(turned(self._shifted[:, :, margin, margin]))

    def __call__(self, pairs: Tensor, view: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Those of pairs [N, 2] in these flips or turns [N] and shifts [N], [K, N, h', w'] each."""
        first = self._turned[view, :, pairs[:, 0]].transpose(0, 1)
        return first, self._shifted[:, pairs[:, 1], shift // self._number, shift % self._number]


def _agreement(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the area [N], and of its part that isn't plain, in which details [N, h, w] agree."""
    products = (first.square(), second.square(), first * second)
    first_blurred, second_blurred, both = (_blurred(product, LOCAL) for product in products)
    both = both * both.sum((1, 2), keepdim=True).sign()
    local = both / (first_blurred * second_blurred).sqrt().clamp_min(1e-6)
    there = torch.maximum(first_blurred, second_blurred) >= 0.2**2
    share = ((local >= AGREES) & there).float().mean((1, 2))
    part = ((local >= AGREES_CLOSELY) & there).float().sum((1, 2)) / there.float().sum((1, 2)).clamp_min(1)
    return share, part
