"""Which samples of a batch are one person's: the same input again, a view of it, or the same id.

Copies add up: the share of c copies of one input in a mean over B is c / B, and their Jacobians are the same, so that
the information about it is that of one sample under B / c times the noise. Near-copies are taken to add up
as copies do.

Images [C, H, W] are compared after mean and contrast are taken out, under flips, quarter turns and shifts of up to
`MAX_SHIFT` pixels at `SIDE` pixels a side, by correlation. Pairs are first screened by the amplitude of the Fourier
transform averaged over flips and turns, which none of these changes; only what passes is compared in full. Other inputs
are compared by distance. Groups are transitive. Crops, shifts of pictures that go on to their border, strong noise and
other distortions aren't recognised.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

# Images are compared at this size at most, pixels a side.
SIDE = 28
MAX_SHIFT = 2
# Correlation from which two images are one: see the rates of false alarms in docs/guard.md.
SAME_IMAGE = 0.98
# Correlation of amplitudes below which a pair isn't compared in full.
SAME_SPECTRUM = 0.99
# Distance, relative to the spread of one input's own entries, up to which two inputs that aren't images are one.
SAME_VECTOR = 0.01
# Channels and sides of what is taken for an image.
MAX_CHANNELS, MIN_SIDE = 4, 8
CHUNK_PAIRS = 4096

_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.0*)?")


def canonical_id(name: object) -> str:
    """An id as text, the same for all spellings of one: 7, 7.0, "7", " 7 ", and Unicode's forms of a letter.

    Case and leading zeros count, since ids may differ in nothing else.
    """
    if isinstance(name, Tensor | np.ndarray | np.generic) and math.prod(name.shape) == 1:
        name = name.item()
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    text = unicodedata.normalize("NFKC", str(name)).strip()
    if isinstance(name, float) and math.isfinite(name) and name.is_integer():
        text = str(int(name))
    match = _NUMBER.fullmatch(text)
    return str(int(text.split(".")[0])) if match else text


def content_id(sample: Tensor) -> str:
    """A digest of one input [...], the same in every floating-point type and for its flips and quarter turns."""
    values = sample.detach().cpu().half()
    forms = _turned(values) if _is_image(sample) else [values]
    return hashlib.sha256(min(form.contiguous().numpy().tobytes() for form in forms)).hexdigest()


def duplicate_labels(inputs: Tensor, ids: Sequence[str]) -> list[int]:
    """A number per sample, the same for those that are to be audited together.

    Args:
        inputs: [B, ...].
        ids: of the samples.
    """
    count = len(inputs)
    by_id: dict[str, int] = {}
    pairs = [(place, by_id.setdefault(name, place)) for place, name in enumerate(ids)]
    if count > 1:
        flat = inputs.detach().flatten(1).cpu().float()
        by_content: dict[bytes, int] = {}
        pairs += [(place, by_content.setdefault(row.numpy().tobytes(), place)) for place, row in enumerate(flat)]
        image = _is_image(inputs[0])
        pairs += _similar_images(inputs.detach().cpu().float()) if image else _near_vectors(flat)
    rows, columns = zip(*pairs, strict=True)
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(count, count))
    return [int(label) for label in connected_components(graph, directed=False)[1]]


def _is_image(sample: Tensor) -> bool:
    return sample.ndim == 3 and sample.shape[0] <= MAX_CHANNELS and min(sample.shape[1:]) >= MIN_SIDE


def _near_vectors(flat: Tensor) -> list[tuple[int, int]]:
    """Pairs of rows [B, d] that differ by little of their own spread."""
    spread = (flat - flat.mean(1, keepdim=True)).norm(dim=1)
    found = []
    for first in range(0, len(flat), CHUNK_PAIRS):
        distance = torch.cdist(flat[first : first + CHUNK_PAIRS], flat, compute_mode="donot_use_mm_for_euclid_dist")
        near = distance <= SAME_VECTOR * torch.minimum(spread[first : first + CHUNK_PAIRS, None], spread[None])
        found += [(int(i) + first, int(j)) for i, j in near.nonzero() if int(i) + first < int(j)]
    return found


def _similar_images(images: Tensor) -> list[tuple[int, int]]:
    """Pairs of images [B, C, H, W] that are views of one another."""
    # One number per pixel, weighted so that different colours don't cancel out.
    weights = torch.linspace(1.0, 2.0, images.shape[1])[:, None, None]
    gray = (images * weights).mean(1, keepdim=True)
    side = (min(SIDE, gray.shape[2]), min(SIDE, gray.shape[3]))
    small = adaptive_avg_pool2d(gray, side)[:, 0]
    small = small - small.mean((1, 2), keepdim=True)
    norm = small.flatten(1).norm(dim=1)
    # Without contrast there is nothing but equality to go by.
    small = small / norm.clamp_min(1e-6)[:, None, None]
    textured = norm > 1e-4
    spectra = torch.fft.rfft2(small)
    candidates = _screened(small, textured)
    found: list[tuple[int, int]] = []
    for first in range(0, len(candidates), CHUNK_PAIRS):
        part = candidates[first : first + CHUNK_PAIRS]
        best = torch.zeros(len(part))
        for view in _turned(small[part[:, 1]]):
            product = torch.fft.irfft2(spectra[part[:, 0]] * torch.fft.rfft2(view).conj(), s=side)
            lags = list(range(-MAX_SHIFT, MAX_SHIFT + 1))
            near = product[:, lags][:, :, lags]
            best = torch.maximum(best, near.abs().amax((1, 2)))
        found += [(int(i), int(j)) for i, j in part[best >= SAME_IMAGE]]
    return found


def _screened(small: Tensor, textured: Tensor) -> Tensor:
    """Pairs [N, 2] of images [B, H, W] whose amplitudes are alike under every flip, turn and shift."""
    amplitude = torch.stack([torch.fft.fft2(view).abs() for view in _turned(small)]).mean(0).flatten(1)
    amplitude = amplitude / amplitude.norm(dim=1, keepdim=True).clamp_min(1e-12)
    found = []
    for first in range(0, len(small), CHUNK_PAIRS):
        alike = amplitude[first : first + CHUNK_PAIRS] @ amplitude.T >= SAME_SPECTRUM
        alike &= textured[first : first + CHUNK_PAIRS, None] & textured[None]
        found.append(torch.triu(alike, diagonal=1 + first).nonzero() + torch.tensor([first, 0]))
    return torch.cat(found)


def _turned(images: Tensor) -> list[Tensor]:
    """Images [..., H, W] flipped and turned, in the ways that keep their shape."""
    turns = range(4) if images.shape[-1] == images.shape[-2] else (0, 2)
    views = [torch.rot90(images, turn, (-2, -1)) for turn in turns]
    return [*views, *(view.flip(-1) for view in views)]
