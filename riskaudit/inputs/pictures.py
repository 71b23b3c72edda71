"""Images as small grey pictures, and which of many pairs of them are alike.

Pictures are at most `SIDE` pixels a side, of mean 0 and root mean square 1. The grey value is the channels' mean, which
no exchange of channels changes.

An image is part of another where it is a crop of at least `LEAST_CROP` a side and of nearly the same aspect. The whole
of one picture is compared coarsely with windows of several sizes in the other and its mirror image, then finely with
the window that fits best, found by a pattern search over its place, size and aspect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# Images are compared at this size at most, pixels a side.
SIDE = 32
# Below this share of the contrast between channels, their mean says too little, and their greatest value is taken.
LEAST_GREY = 0.1
# Windows with less contrast than this share of their image's have nothing to compare.
LEAST_CONTRAST = 0.1
# Entries of intermediate tensors.
CHUNK_ENTRIES = 2**20
# Least correlation from which two images are one: see the rates of false alarms in docs/guard.md.
SAME_CROPPED = 0.99
# Bins a side of the coarse comparison, and the correlation below which it ends.
CROP_BINS, LIKELY_CROPPED = 8, 0.85
# Windows that are tried for crops: sides, and the distance between their places, as shares of the image's.
CROP_SIDES, CROP_STEP = (0.95, 0.88, 0.8, 0.72, 0.64, 0.56), 0.07
LEAST_CROP = 0.5
# Bins a side of the fine comparison; its search in stages: rounds, how many of the steps are tried, and the correlation
# below which it ends. Of 1,000 crops of random clouds to 0.7 of a side and more the least were 0.889, 0.896, 0.96 and
# 0.987 on their way, none of which ended below 0.999.
FINE_BINS, SEARCH = 16, ((1, 5, 0.82), (2, 5, 0.88), (2, 5, 0.94), (5, 5, 0.97), (8, 8, SAME_CROPPED))
# Pairs per image, and at least, whose crops are compared finely.
CROPS_PER_IMAGE, LEAST_CROPS = 2, 256
CHUNK_PAIRS = 256
# Steps of the search in a window's top, left, height and width: moved, and grown about its middle, in both or one side;
# at the end also moved aslant and grown from its corner.
_MOVES = torch.tensor(
    [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [-0.5, -0.5, 1, 1],
        [-0.5, 0, 1, 0],
        [0, -0.5, 0, 1],
        [0, 0, 1, 1],
        [1, 1, 0, 0],
        [1, -1, 0, 0],
    ],
    dtype=torch.float32,
)


def turned(images: Tensor) -> list[Tensor]:
    """Images [..., H, W] flipped and turned, in the ways that keep their shape."""
    turns = range(4) if images.shape[-1] == images.shape[-2] else (0, 2)
    views = [torch.rot90(images, turn, (-2, -1)) for turn in turns]
    return [*views, *(view.flip(-1) for view in views)]


def small_grey(images: Tensor) -> Tensor:
    """Images [B, C, H, W] as pictures [B, h, w]; 0 where they have no contrast."""
    side = (min(SIDE, images.shape[2]), min(SIDE, images.shape[3]))
    parts = []
    for part in torch.split(images, max(1, CHUNK_ENTRIES // images[0].numel())):
        pixels = part.cpu().float()
        grey = pixels.mean(1, keepdim=True)
        colours = (pixels - grey).square().mean((1, 2, 3)).sqrt()
        # Colours of equal mean would be lost.
        lost = grey.flatten(1).std(1, correction=0) < LEAST_GREY * colours
        grey = torch.where(lost[:, None, None, None], pixels.amax(1, keepdim=True), grey)
        parts.append(grey if grey.shape[2:] == side else interpolate(grey, side, mode="bilinear", antialias=True))
    small = torch.cat(parts)[:, 0]
    small = small - small.mean((1, 2), keepdim=True)
    scale = small.square().mean((1, 2), keepdim=True).sqrt()
    return torch.where(scale > 1e-5, small / scale.clamp_min(1e-6), torch.zeros(()))


def unit_windows(windows: Tensor) -> Tensor:
    """Windows [..., h, w] of images of root mean square 1, flat, of mean 0 and norm 1; 0 where they lack contrast."""
    flat = windows.flatten(-2)
    flat = flat - flat.mean(-1, keepdim=True)
    norm = flat.norm(dim=-1, keepdim=True)
    least = LEAST_CONTRAST * flat.shape[-1] ** 0.5
    return torch.where(norm >= least, flat / norm.clamp_min(1e-6), torch.zeros(()))


@dataclass(frozen=True, eq=False)
class AlikePairs:
    """Pairs of pictures of which one's reference is like one of the other's templates.

    Attributes:
        pairs: [N, 2].
        reference, template: the two that are most alike [N].
        similarity: their correlation without its sign [N].
        all_similarities: of all pairs that were compared [M].
    """

    pairs: Tensor
    reference: Tensor
    template: Tensor
    similarity: Tensor
    all_similarities: Tensor

    def select(self, least: float, most: int) -> AlikePairs:
        """The ``most`` that are most alike, and from ``least`` on."""
        rows = (self.similarity >= least).nonzero()[:, 0]
        if len(rows) > most:
            rows = rows[self.similarity[rows].topk(most).indices]
        return AlikePairs(
            self.pairs[rows],
            self.reference[rows],
            self.template[rows],
            self.similarity[rows],
            self.all_similarities,
        )


def alike_pairs(references: Tensor, templates: Tensor, least: float, *, ordered: bool) -> AlikePairs:
    """Pairs of which a reference [B, V, d] and a template [B, T, d], of norm 1, correlate by ``least`` or more.

    ``ordered`` compares every pair in both orders.
    """
    count, number = templates.shape[:2]
    alike, every = [], []
    width = max(1, CHUNK_ENTRIES // (len(references) * references.shape[1] * number))
    for first in range(0, count, width):
        part = templates[first : first + width]
        rows = references if ordered else references[: first + width]
        like = (rows.flatten(0, 1) @ part.flatten(0, 1).T).abs_()
        value, template = like.view(len(rows), -1, len(part), number).max(-1)
        value, view = value.max(1)
        mine, theirs = torch.arange(len(rows))[:, None], torch.arange(len(part)) + first
        value = torch.where(mine != theirs if ordered else mine < theirs, value, -1.0)
        every.append(value[value >= 0])
        mine, theirs = (value >= least).nonzero(as_tuple=True)
        view = view[mine, theirs]
        pairs = torch.stack([mine, theirs + first], 1)
        alike.append((pairs, view, template[mine, view, theirs], value[mine, theirs]))
    joined = [torch.cat(each) for each in zip(*alike, strict=True)]
    return AlikePairs(joined[0], joined[1], joined[2], joined[3], torch.cat(every))


def cropped_pairs(small: Tensor) -> Tensor:
    """Pairs [N, 2] of images [B, h, w] of which the first, or its mirror image, is a part of the second."""
    height, width = small.shape[1:]
    grids, whole = _crop_grids(height, width), _whole_grid(height, width)
    views = torch.stack([small, small.flip(-1)], 1)
    references = _windows(views, whole, CROP_BINS)[:, :, 0]
    templates = _windows(small[:, None], grids, CROP_BINS)[:, 0]
    likely = alike_pairs(references, templates, LIKELY_CROPPED, ordered=True)
    likely = likely.select(LIKELY_CROPPED, max(LEAST_CROPS, CROPS_PER_IMAGE * len(small)))
    pairs, view, box = likely.pairs, likely.reference, likely.template
    targets, boxes = _windows(views, whole, FINE_BINS)[:, :, 0], torch.cat([grid.boxes for grid in grids])
    cropped = [pairs.new_zeros(0, 2)]
    for rows in torch.split(torch.arange(len(pairs)), CHUNK_PAIRS):
        part = pairs[rows]
        search = _WindowSearch(targets[part[:, 0], view[rows]], small[part[:, 1]], boxes[box[rows]])
        for rounds, num_moves, least in SEARCH:
            search.run(rounds, num_moves)
            left = search.correlation >= least
            part, search = part[left], search.select(left)
        cropped.append(part)
    return torch.cat(cropped)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Windows of one size at all pairs of these tops [K] and lefts [M], in pixels."""

    tops: Tensor
    lefts: Tensor
    height: float
    width: float

    @property
    def boxes(self) -> Tensor:
        """Top, left, height and width [K M, 4]."""
        corners = torch.cartesian_prod(self.tops, self.lefts)
        return torch.cat([corners, torch.tensor([[self.height, self.width]]).expand(len(corners), 2)], 1)

    @cache  # noqa: B019  (the grids themselves are remembered, one set per size of picture)
    def bins(self, count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Means over ``count`` bins a side, as matrices [K count, height] and [M count, width]."""
        rows = _bins(self.tops, torch.full_like(self.tops, self.height), count, height)
        columns = _bins(self.lefts, torch.full_like(self.lefts, self.width), count, width)
        return rows.flatten(0, 1), columns.flatten(0, 1)


@cache
def _whole_grid(height: int, width: int) -> list[_Grid]:
    return [_Grid(torch.zeros(1), torch.zeros(1), height, width)]


@cache
def _crop_grids(height: int, width: int) -> list[_Grid]:
    grids = []
    for side in CROP_SIDES:
        offsets = torch.linspace(0, 1 - side, 1 + max(1, round((1 - side) / CROP_STEP)))
        grids.append(_Grid(offsets * height, offsets * width, side * height, side * width))
    return grids


class _WindowSearch:
    """Pattern search from boxes [N, 4] for windows of images [N, h, w] most like targets [N, FINE_BINS^2] of norm 1.

    ``correlation`` is that of the best window so far [N].
    """

    def __init__(self, targets: Tensor, images: Tensor, boxes: Tensor) -> None:
        self._targets, self._images, self._boxes = targets, images, boxes
        self._step = torch.full((len(boxes), 1, 1), CROP_STEP * images.shape[1])
        self.correlation = self._correlations(boxes[:, None])[:, 0]

    def run(self, rounds: int, num_moves: int) -> None:
        """Take the best step of all; halve steps where none is better."""
        moves = torch.cat([_MOVES[:num_moves], -_MOVES[:num_moves]])
        for _ in range(rounds if len(self._boxes) else 0):
            tried = self._inside(self._boxes[:, None] + moves * self._step)
            value, best = self._correlations(tried).max(1)
            better = value > self.correlation
            self._boxes = torch.where(better[:, None], tried[torch.arange(len(best)), best], self._boxes)
            self.correlation = torch.maximum(self.correlation, value)
            self._step = torch.where(better[:, None, None], self._step, self._step / 2)

    def select(self, mask: Tensor) -> _WindowSearch:
        """Some of them, with where they are."""
        selected = _WindowSearch(self._targets[mask], self._images[mask], self._boxes[mask])
        selected._step = self._step[mask]
        return selected

    def _correlations(self, boxes: Tensor) -> Tensor:
        """[N, K] of windows [N, K, 4]."""
        rows = _bins(boxes[..., 0], boxes[..., 2], FINE_BINS, self._images.shape[1])
        columns = _bins(boxes[..., 1], boxes[..., 3], FINE_BINS, self._images.shape[2])
        return (unit_windows(rows @ self._images[:, None] @ columns.mT) * self._targets[:, None]).sum(-1).abs()

    def _inside(self, boxes: Tensor) -> Tensor:
        sides = torch.tensor(self._images.shape[1:], dtype=torch.float32)
        size = torch.minimum(torch.maximum(boxes[..., 2:], LEAST_CROP * sides), sides)
        return torch.cat([torch.minimum(boxes[..., :2].clamp_min(0.0), sides - size), size], -1)


def _windows(views: Tensor, grids: Sequence[_Grid], bins: int) -> Tensor:
    """Windows of views [B, V, h, w] in bins, of mean 0 and norm 1, [B, V, T, bins^2]."""
    windows = []
    for grid in grids:
        rows, columns = grid.bins(bins, views.shape[2], views.shape[3])
        product = rows @ views @ columns.T
        shape = (*product.shape[:2], len(grid.tops), bins, len(grid.lefts), bins)
        parts = product.reshape(shape).transpose(3, 4)
        windows.append(unit_windows(parts.flatten(2, 3)))
    return torch.cat(windows, 2)


def _bins(start: Tensor, length: Tensor, count: int, side: int) -> Tensor:
    """Means over ``count`` equal bins of ``length`` pixels from ``start`` [...] on, as matrices [..., count, side]."""
    edges = start[..., None] + length[..., None] * torch.arange(count + 1) / count
    pixels = torch.arange(side, dtype=torch.float32)
    low, high = torch.maximum(edges[..., :-1, None], pixels), torch.minimum(edges[..., 1:, None], pixels + 1)
    return (high - low).clamp_min(0.0) * (count / length[..., None, None])
