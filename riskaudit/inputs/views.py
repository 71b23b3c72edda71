"""Which images are views of one another: flips, quarter turns, small shifts, crops, and changes of contrast.

Images [C, H, W] are compared as grey pictures of at most `SIDE` pixels a side, by correlation, so that brightness,
contrast and negatives don't count. First all pairs are compared coarsely: the middle of one image with every window of
its size in all flips and turns of the other, and the whole of one with windows of several sizes in the other and its
mirror image. Pairs that agree are then compared finely: shifts by the pixels in which both images overlap, crops by
the window that fits best, found by a pattern search over its place, size and aspect.

Two different crops of one image, crops of turned images or of less than `LEAST_CROP` a side, strong noise and other
distortions aren't recognised.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# Images are compared at this size at most, pixels a side.
SIDE = 32
# Largest shift in such pixels; smaller images aren't shifted by more than an eighth of a side.
MAX_SHIFT = 2
# Least correlation from which two images are one: see the rates of false alarms in docs/guard.md.
SAME_SHIFTED, SAME_CROPPED = 0.98, 0.99
# Bins a side of the coarse comparisons, and the correlation below which they end.
SHIFT_BINS, CROP_BINS = 8, 8
LIKELY_SHIFTED, LIKELY_CROPPED = 0.95, 0.85
# Windows that are tried for crops: sides, and the distance between their places, as shares of the image's.
CROP_SIDES, CROP_STEP = (0.95, 0.88, 0.8, 0.72, 0.64, 0.56), 0.07
# Smaller images have too few pixels to tell a crop from a stranger.
LEAST_CROPPED_SIDE, LEAST_CROP = 24, 0.5
# Bins a side of the fine comparison of crops; rounds of its search, after the first few of which most pairs are out.
FINE_BINS, ROUNDS, FIRST_ROUNDS, PROMISING = 16, 10, 3, 0.9
# Pairs per image, and at least, whose crops are compared finely.
CROPS_PER_IMAGE, LEAST_CROPS = 2, 256
# Windows with less contrast than this share of their image's have nothing to compare.
LEAST_CONTRAST = 0.1
# Channels and sides of what is taken for an image.
MAX_CHANNELS, MIN_SIDE = 4, 8
# Entries of intermediate tensors.
CHUNK_ENTRIES = 2**20
CHUNK_PAIRS = 256
# Steps of the search in a window's top, left, height and width: moved, and grown about its middle in both or one side.
_MOVES = torch.tensor(
    [[1, 0, 0, 0], [0, 1, 0, 0], [-0.5, -0.5, 1, 1], [-0.5, 0, 1, 0], [0, -0.5, 0, 1]], dtype=torch.float32
)


def is_image(sample: Tensor) -> bool:
    """Whether one input [...] is taken for an image [C, H, W]."""
    return sample.ndim == 3 and sample.shape[0] <= MAX_CHANNELS and min(sample.shape[1:]) >= MIN_SIDE


def similar_images(images: Tensor) -> list[tuple[int, int]]:
    """Pairs of images [B, C, H, W] that are views of one another."""
    small = _prepared(images)
    found = _shifted(small)
    if min(small.shape[1:]) >= LEAST_CROPPED_SIDE:
        found = torch.cat([found, _cropped(small)])
    return [(int(first), int(second)) for first, second in found]


def turned(images: Tensor) -> list[Tensor]:
    """Images [..., H, W] flipped and turned, in the ways that keep their shape."""
    turns = range(4) if images.shape[-1] == images.shape[-2] else (0, 2)
    views = [torch.rot90(images, turn, (-2, -1)) for turn in turns]
    return [*views, *(view.flip(-1) for view in views)]


def _prepared(images: Tensor) -> Tensor:
    """Images [B, C, H, W] small, grey, of mean 0 and root mean square 1, [B, h, w]; 0 where they have no contrast."""
    # One number per pixel, weighted so that different colours don't cancel out.
    weights = torch.linspace(1.0, 2.0, images.shape[1])[:, None, None]
    side = (min(SIDE, images.shape[2]), min(SIDE, images.shape[3]))
    parts = []
    for part in torch.split(images, max(1, CHUNK_ENTRIES // images[0].numel())):
        grey = (part.cpu().float() * weights).mean(1, keepdim=True)
        parts.append(grey if grey.shape[2:] == side else interpolate(grey, side, mode="bilinear", antialias=True))
    small = torch.cat(parts)[:, 0]
    small = small - small.mean((1, 2), keepdim=True)
    scale = small.square().mean((1, 2), keepdim=True).sqrt()
    return torch.where(scale > 1e-5, small / scale.clamp_min(1e-6), torch.zeros(()))


def _shifted(small: Tensor) -> Tensor:
    """Pairs [N, 2] of images [B, h, w] of which one is the other, flipped, turned and shifted."""
    height, width = small.shape[1:]
    most = min(MAX_SHIFT, min(height, width) // 8)
    places = torch.arange(2 * most + 1, dtype=torch.float32)
    grid = _Grid(places, places, height - 2 * most, width - 2 * most)
    views = torch.stack(turned(small), 1)
    references = _windows(views, [_Grid(places[most, None], places[most, None], grid.height, grid.width)], SHIFT_BINS)
    templates = _windows(small[:, None], [grid], SHIFT_BINS)[:, 0]
    pairs, view, box = _screened(references[:, :, 0], templates, LIKELY_SHIFTED, ordered=False)
    found = [pairs.new_zeros(0, 2)]
    for lag, (down, right) in enumerate(itertools.product(range(-most, most + 1), repeat=2)):
        chosen = pairs[box == lag]
        mine = views[chosen[:, 0], view[box == lag]]
        mine = mine[:, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
        theirs = small[chosen[:, 1]]
        theirs = theirs[:, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
        found.append(chosen[(_unit(mine) * _unit(theirs)).sum(-1).abs() >= SAME_SHIFTED])
    return torch.cat(found)


def _cropped(small: Tensor) -> Tensor:
    """Pairs [N, 2] of images [B, h, w] of which the first, or its mirror image, is a part of the second."""
    height, width = small.shape[1:]
    zero = torch.zeros(1)
    grids, whole = _crop_grids(height, width), [_Grid(zero, zero, height, width)]
    views = torch.stack([small, small.flip(-1)], 1)
    references = _windows(views, whole, CROP_BINS)[:, :, 0]
    templates = _windows(small[:, None], grids, CROP_BINS)[:, 0]
    most = max(LEAST_CROPS, CROPS_PER_IMAGE * len(small))
    pairs, view, box = _screened(references, templates, LIKELY_CROPPED, ordered=True, most=most)
    targets, boxes = _windows(views, whole, FINE_BINS)[:, :, 0], torch.cat([grid.boxes for grid in grids])
    found = [pairs.new_zeros(0, 2)]
    for rows in torch.split(torch.arange(len(pairs)), CHUNK_PAIRS):
        part = pairs[rows]
        search = _WindowSearch(targets[part[:, 0], view[rows]], small[part[:, 1]], boxes[box[rows]])
        search.run(FIRST_ROUNDS)
        promising = search.correlation >= PROMISING
        search = search.select(promising)
        search.run(ROUNDS - FIRST_ROUNDS)
        found.append(part[promising][search.correlation >= SAME_CROPPED])
    return torch.cat(found)


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
        places = torch.cartesian_prod(self.tops, self.lefts)
        return torch.cat([places, torch.tensor([[self.height, self.width]]).expand(len(places), 2)], 1)


def _crop_grids(height: int, width: int) -> list[_Grid]:
    """Windows of several sizes in images of these sides."""
    grids = []
    for side in CROP_SIDES:
        places = torch.linspace(0, 1 - side, 1 + max(1, round((1 - side) / CROP_STEP)))
        grids.append(_Grid(places * height, places * width, side * height, side * width))
    return grids


def _screened(
    references: Tensor, templates: Tensor, least: float, *, ordered: bool, most: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of which one of the first's references is like one of the second's templates.

    Args:
        references: [B, V, d] of norm 1.
        templates: [B, T, d] of norm 1.
        least: correlation.
        ordered: compare every pair in both orders.
        most: how many pairs are returned, the most alike ones.

    Returns:
        Pairs [N, 2], and the reference [N] and the template [N] that are most alike.
    """
    count, number = templates.shape[:2]
    kept = []
    width = max(1, CHUNK_ENTRIES // (len(references) * references.shape[1] * number))
    for first in range(0, count, width):
        part = templates[first : first + width]
        rows = references if ordered else references[: first + width]
        like = (rows.flatten(0, 1) @ part.flatten(0, 1).T).abs_()
        value, template = like.view(len(rows), -1, len(part), number).max(-1)
        value, view = value.max(1)
        mine, theirs = (value >= least).nonzero(as_tuple=True)
        true = mine != theirs + first if ordered else mine < theirs + first
        mine, theirs = mine[true], theirs[true]
        view = view[mine, theirs]
        kept.append((torch.stack([mine, theirs + first], 1), view, template[mine, view, theirs], value[mine, theirs]))
    pairs, views, places, values = (torch.cat(each) for each in zip(*kept, strict=True))
    if most is not None and len(values) > most:
        top = values.topk(most).indices
        pairs, views, places = pairs[top], views[top], places[top]
    return pairs, views, places


class _WindowSearch:
    """Pattern search for the windows of images that look most like others.

    Args:
        targets: [N, FINE_BINS^2] of norm 1.
        images: [N, h, w].
        boxes: [N, 4] to start from.

    Attributes:
        correlation: of the best window so far [N].
    """

    def __init__(self, targets: Tensor, images: Tensor, boxes: Tensor) -> None:
        self._targets, self._images, self._boxes = targets, images, boxes
        self._step = torch.full((len(boxes), 1, 1), CROP_STEP * images.shape[1])
        self.correlation = self._correlations(boxes[:, None])[:, 0]

    def run(self, rounds: int) -> None:
        """Take the best step of all; halve steps where none is better."""
        moves = torch.cat([_MOVES, -_MOVES])
        for _ in range(rounds if len(self._boxes) else 0):
            tried = self._inside(self._boxes[:, None] + moves * self._step)
            value, place = self._correlations(tried).max(1)
            better = value > self.correlation
            self._boxes = torch.where(better[:, None], tried[torch.arange(len(place)), place], self._boxes)
            self.correlation = torch.maximum(self.correlation, value)
            self._step = torch.where(better[:, None, None], self._step, self._step / 2)

    def select(self, mask: Tensor) -> _WindowSearch:
        """Some of them, with where they are."""
        found = _WindowSearch(self._targets[mask], self._images[mask], self._boxes[mask])
        found._step = self._step[mask]
        return found

    def _correlations(self, boxes: Tensor) -> Tensor:
        """[N, K] of windows [N, K, 4]."""
        rows = _bins(boxes[..., 0], boxes[..., 2], FINE_BINS, self._images.shape[1])
        columns = _bins(boxes[..., 1], boxes[..., 3], FINE_BINS, self._images.shape[2])
        return (_unit(rows @ self._images[:, None] @ columns.mT) * self._targets[:, None]).sum(-1).abs()

    def _inside(self, boxes: Tensor) -> Tensor:
        sides = torch.tensor(self._images.shape[1:], dtype=torch.float32)
        size = torch.minimum(torch.maximum(boxes[..., 2:], LEAST_CROP * sides), sides)
        return torch.cat([torch.minimum(boxes[..., :2].clamp_min(0.0), sides - size), size], -1)


def _windows(views: Tensor, grids: Sequence[_Grid], bins: int) -> Tensor:
    """Windows of views [B, V, h, w] in bins, of mean 0 and norm 1, [B, V, T, bins^2]."""
    found = []
    for grid in grids:
        rows = _bins(grid.tops, torch.full_like(grid.tops, grid.height), bins, views.shape[2])
        columns = _bins(grid.lefts, torch.full_like(grid.lefts, grid.width), bins, views.shape[3])
        product = rows.flatten(0, 1) @ views @ columns.flatten(0, 1).T
        shape = (*product.shape[:2], len(grid.tops), bins, len(grid.lefts), bins)
        parts = product.reshape(shape).transpose(3, 4)
        found.append(_unit(parts.flatten(2, 3)))
    return torch.cat(found, 2)


def _bins(start: Tensor, length: Tensor, count: int, side: int) -> Tensor:
    """Means over ``count`` equal bins of ``length`` pixels from ``start`` [...] on, as matrices [..., count, side]."""
    edges = start[..., None] + length[..., None] * torch.arange(count + 1) / count
    pixels = torch.arange(side, dtype=torch.float32)
    low, high = torch.maximum(edges[..., :-1, None], pixels), torch.minimum(edges[..., 1:, None], pixels + 1)
    return (high - low).clamp_min(0.0) * (count / length[..., None, None])


def _unit(windows: Tensor) -> Tensor:
    """Windows [..., h, w] of images of root mean square 1, flat, of mean 0 and norm 1; 0 where they lack contrast."""
    flat = windows.flatten(-2)
    flat = flat - flat.mean(-1, keepdim=True)
    norm = flat.norm(dim=-1, keepdim=True)
    least = LEAST_CONTRAST * flat.shape[-1] ** 0.5
    return torch.where(norm >= least, flat / norm.clamp_min(1e-6), torch.zeros(()))
