"""Which images are views of one another.

Images [C, H, W] are compared after mean and contrast are taken out, under flips, quarter turns and shifts of up to
`MAX_SHIFT` pixels at `SIDE` pixels a side, by correlation. Pairs are first screened by the amplitude of the Fourier
transform averaged over flips and turns, which none of these changes; only what passes is compared in full. Crops,
shifts of pictures that go on to their border, strong noise and other distortions aren't recognised.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

# Images are compared at this size at most, pixels a side.
SIDE = 28
MAX_SHIFT = 2
# Correlation from which two images are one: see the rates of false alarms in docs/guard.md.
SAME_IMAGE = 0.98
# Correlation of amplitudes below which a pair isn't compared in full.
SAME_SPECTRUM = 0.99
# Channels and sides of what is taken for an image.
MAX_CHANNELS, MIN_SIDE = 4, 8
CHUNK_PAIRS = 4096
# Entries of images that are made small at once.
CHUNK_ENTRIES = 2**24


def is_image(sample: Tensor) -> bool:
    """Whether one input [...] is taken for an image [C, H, W]."""
    return sample.ndim == 3 and sample.shape[0] <= MAX_CHANNELS and min(sample.shape[1:]) >= MIN_SIDE


def similar_images(images: Tensor) -> list[tuple[int, int]]:
    """Pairs of images [B, C, H, W] that are views of one another."""
    small, textured = _prepared(images)
    side = (small.shape[1], small.shape[2])
    spectra = torch.fft.rfft2(small)
    candidates = _screened(small, textured)
    found: list[tuple[int, int]] = []
    for first in range(0, len(candidates), CHUNK_PAIRS):
        part = candidates[first : first + CHUNK_PAIRS]
        best = torch.zeros(len(part))
        for view in turned(small[part[:, 1]]):
            product = torch.fft.irfft2(spectra[part[:, 0]] * torch.fft.rfft2(view).conj(), s=side)
            lags = list(range(-MAX_SHIFT, MAX_SHIFT + 1))
            near = product[:, lags][:, :, lags]
            best = torch.maximum(best, near.abs().amax((1, 2)))
        found += [(int(i), int(j)) for i, j in part[best >= SAME_IMAGE]]
    return found


def turned(images: Tensor) -> list[Tensor]:
    """Images [..., H, W] flipped and turned, in the ways that keep their shape."""
    turns = range(4) if images.shape[-1] == images.shape[-2] else (0, 2)
    views = [torch.rot90(images, turn, (-2, -1)) for turn in turns]
    return [*views, *(view.flip(-1) for view in views)]


def _prepared(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] small, grey, and of mean 0 and norm 1 [B, h, w], and which have any contrast [B]."""
    # One number per pixel, weighted so that different colours don't cancel out.
    weights = torch.linspace(1.0, 2.0, images.shape[1])[:, None, None]
    side = (min(SIDE, images.shape[2]), min(SIDE, images.shape[3]))
    parts = [
        adaptive_avg_pool2d((part.cpu().float() * weights).mean(1, keepdim=True), side)[:, 0]
        for part in torch.split(images, max(1, CHUNK_ENTRIES // images[0].numel()))
    ]
    small = torch.cat(parts)
    small = small - small.mean((1, 2), keepdim=True)
    norm = small.flatten(1).norm(dim=1)
    # Without contrast there is nothing but equality to go by.
    return small / norm.clamp_min(1e-6)[:, None, None], norm > 1e-4


def _screened(small: Tensor, textured: Tensor) -> Tensor:
    """Pairs [N, 2] of images [B, H, W] whose amplitudes are alike under every flip, turn and shift."""
    amplitude = torch.stack([torch.fft.fft2(view).abs() for view in turned(small)]).mean(0).flatten(1)
    amplitude = amplitude / amplitude.norm(dim=1, keepdim=True).clamp_min(1e-12)
    found = []
    for first in range(0, len(small), CHUNK_PAIRS):
        alike = amplitude[first : first + CHUNK_PAIRS] @ amplitude.T >= SAME_SPECTRUM
        alike &= textured[first : first + CHUNK_PAIRS, None] & textured[None]
        found.append(torch.triu(alike, diagonal=1 + first).nonzero() + torch.tensor([first, 0]))
    return torch.cat(found)
