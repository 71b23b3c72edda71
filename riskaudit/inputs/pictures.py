"""Images as small grey pictures, and which of many pairs of them are alike.

Pictures are at most `SIDE` pixels a side, of mean 0 and root mean square 1. The grey value is the channels' mean, which
no exchange of channels changes.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """Pairs with a correlation from ``least`` on.

    Args:
        references: [B, V, d] of norm 1.
        templates: [B, T, d] of norm 1.
        least: correlation, without its sign.
        ordered: compare every pair in both orders.
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
