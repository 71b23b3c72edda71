"""Targets that give the input away.

An audit takes the targets as known to the attacker and asks what the gradient tells of the input besides. Class
numbers say little. Where the target is the input itself (an autoencoder), a clean, resized, shifted or noisy version of
it, or something that contains it, an update that gives away the target gives away the input: the last layer's bias
gradient of a squared error is f(x) - target. Of such samples nothing can be claimed.

A target carries its input where an affine map of it, or of a part of it, explains most of the input's variance, in
every sample by itself or by one linear map over samples. Agreement by chance is told by the distribution of squared
correlations of independent normal vectors, Beta(1 / 2, (n - 2) / 2). Neighbours are alike, so n is fewer than all
values: of images one in each square of `SMOOTH` pixels, of rows what Bartlett's formula for series makes of their
autocorrelation (Bartlett, J. R. Stat. Soc. 98, 1935); rows are compared by their steps as well, which trends don't
make alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt, prod

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import betainccinv
from torch import Tensor

# Share of an input's variance from which on its target carries it.
EXPLAINED = 0.5
# Probability per sample that independent values of one input and one target pass for it.
CHANCE = 1e-6
# Pixels of an image in one value that varies by itself.
SMOOTH = 4
# Deviations below this share of the inputs' spread are none. Of fewer values than this all have to be equal.
CLOSE, LEAST_EQUAL = 1e-3, 8
# Least share of an image's variance that is taken for content, however noisy it looks.
LEAST_CONTENT = 0.2
# A batch is looked at as a whole from so many samples on, of at most so many.
LEAST_SAMPLES, MOST_SAMPLES = 16, 256
# Ridges of the map over samples, relative to the targets' mean square.
RIDGES = (1e-3, 1e-1, 10.0)
# Parts of a target that lie side by side, and channels, are looked at one by one up to so many.
MOST_PARTS = 8
# Entries of inputs and targets that are worked on at once.
CHUNK_ENTRIES = 2**22
CARRIED = (
    "its target carries its input, or most of it, and an update gives targets away, so nothing is claimed of the "
    "input; train on targets that don't contain the input, or treat it as disclosed"
)


def are_labels(targets: Tensor) -> bool:
    """Whether targets [N, ...] are one label per sample: class numbers, 0 or 1, or one-hot rows."""
    flat = targets.flatten(1) if targets.ndim > 1 else targets[:, None]
    if flat.shape[1] == 1 and not flat.is_floating_point():
        return True
    zero_one = bool(((flat == 0) | (flat == 1)).all())
    return zero_one and targets.ndim <= 2 and (flat.shape[1] == 1 or bool((flat.sum(1) == 1).all()))


def target_notes(targets: Tensor) -> list[str]:
    """That targets are taken as known, where they are more than labels."""
    if are_labels(targets):
        return []
    return [
        "targets are taken as known to the attacker, and these are no labels of whole samples: the numbers say what an "
        "update reveals of the inputs besides them, and it may give the targets away as well"
    ]


def carrying_targets(inputs: Tensor, targets: Tensor) -> list[bool]:
    """Which samples' targets carry their inputs.

    Args:
        inputs: [N, *S].
        targets: [N, ...].
    """
    count = len(inputs)
    if are_labels(targets) or not count:
        return [False] * count
    size = max(1, CHUNK_ENTRIES // (inputs[0].numel() + targets[0].numel()))
    spread = float(inputs.double().std(correction=0))
    with torch.no_grad():
        parts = [_carry_alone(inputs[at : at + size].double(), targets[at : at + size].double(), spread)
                 for at in range(0, count, size)]  # fmt: skip
        carried: list[bool] = torch.cat(parts).tolist()
        # What holds of most samples is how the targets were made.
        if count >= LEAST_SAMPLES and (2 * sum(carried) > count or _carry_together(inputs, targets)):
            return [True] * count
    return carried


@dataclass(frozen=True)
class _Match:
    """How well an affine map of the targets, or of a part of them, gives the inputs of a batch.

    Attributes:
        squared: correlation r^2 of what was compared, [B].
        share: of the input's variance that lies in what was compared, over that which isn't noise, [B] or 1.
        values: n, that vary by themselves, [B] or the same for all.
        tries: places that the best was chosen from.
    """

    squared: Tensor
    share: Tensor | float
    values: Tensor | int
    tries: int = 1

    def carries(self) -> Tensor:
        """Whether it explains most of the input, and isn't chance, [B]."""
        values = torch.as_tensor(self.values).expand_as(self.squared).cpu().numpy()
        # The upper quantile of Beta(1 / 2, (n - 2) / 2).
        least = betainccinv(0.5, np.maximum(values - 2, 1) / 2, CHANCE / self.tries)
        critical = torch.as_tensor(np.where(values < 3, np.inf, least)).to(self.squared)
        explained = self.squared * self.share
        # Noise makes a correlation smaller, be it chance or not.
        return (explained >= EXPLAINED) & (torch.maximum(explained, self.squared) >= critical)


def _carry_alone(inputs: Tensor, targets: Tensor, spread: float) -> Tensor:
    """By each sample's own values, [B]."""
    equal = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
    if inputs[0].numel() == targets[0].numel():
        equal |= _are_equal(inputs.flatten(1), targets.flatten(1), CLOSE * spread)
    if min(inputs[0].numel(), targets[0].numel()) > 2:
        for match in _matches(inputs, targets):
            equal |= match.carries()
    return equal


def _are_equal(flat: Tensor, told: Tensor, tolerance: float) -> Tensor:
    """Whether most values of inputs [B, d] are the target's, [B]; what was masked has the commonest value."""
    told_apart = (flat - flat.mode(1, keepdim=True).values).abs() > tolerance
    number = told_apart.sum(1)
    equal = ((flat - told).abs() <= tolerance) & told_apart
    share = equal.sum(1) / number.clamp_min(1)
    # Whole numbers are equal by chance.
    whole = (flat == flat.round()).all(1)
    return (number > 1) & ~whole & torch.where(number < LEAST_EQUAL, share == 1, share >= EXPLAINED)


def _matches(inputs: Tensor, targets: Tensor) -> Iterator[_Match]:
    flat, told = inputs.flatten(1), targets.flatten(1)
    if inputs.ndim == 2:
        yield from _rows(flat, told)
        if min(flat.shape[1], told.shape[1]) > 3:
            yield from _rows(flat.diff(), told.diff())
        return
    if flat.shape[1] == told.shape[1]:
        yield _Match(_squared_correlation(flat, told), 1.0, flat.shape[1] // SMOOTH**2)
    elif max(flat.shape[1], told.shape[1]) <= CHUNK_ENTRIES // 8:
        yield from _contained(flat[:, None], told[:, None], flat.shape[1] // SMOOTH**2)
    for image in _as_images(inputs, targets):
        yield from _resized(inputs if inputs.ndim > 3 else inputs[:, None], image)


def _rows(flat: Tensor, told: Tensor) -> Iterator[_Match]:
    """Of inputs [B, d] against targets [B, m], and against parts of them, side by side or interleaved."""
    size, longer = flat.shape[1], told.shape[1]
    values = _independent_values(flat, told)
    if size == longer:
        yield _Match(_squared_correlation(flat, told), 1.0, values)
    elif max(size, longer) <= CHUNK_ENTRIES // 8:
        yield from _contained(flat[:, None], told[:, None], values)
    parts = longer // size
    if 1 < parts <= MOST_PARTS and longer == parts * size:
        for part in told.reshape(-1, size, parts).unbind(-1):
            yield _Match(_squared_correlation(flat, part), 1.0, values)


def _independent_values(flat: Tensor, told: Tensor) -> Tensor:
    """How many values of the shorter of two series [B, d] and [B, m] vary by themselves, [B]."""
    alike = _autocorrelation(flat) * _autocorrelation(told)
    return min(flat.shape[1], told.shape[1]) * ((1 - alike) / (1 + alike)).clamp(0.0, 1.0)


def _autocorrelation(series: Tensor) -> Tensor:
    """Of neighbours, [B]; 0 where it is negative."""
    centred = series - series.mean(1, keepdim=True)
    correlations = (centred[:, 1:] * centred[:, :-1]).sum(1) / centred.square().sum(1)
    return correlations.nan_to_num(0.0, 0.0, 0.0).clamp(0.0, 1.0)


def _as_images(inputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """Targets as images [B, C, H, W] beside inputs that are some, in every layout that they may have."""
    if inputs.ndim not in (3, 4):
        return
    if targets.ndim == 4:
        yield targets
        if targets.shape[-1] <= 4 < targets.shape[1]:
            yield targets.movedim(-1, 1)
    elif targets.ndim == 3:
        yield targets[:, None]
    elif targets.ndim == 2:
        channels = inputs.shape[1] if inputs.ndim == 4 else 1
        height, width, size = inputs.shape[-2], inputs.shape[-1], targets.shape[1]
        for planes in {channels, 1}:
            # Of the same proportions.
            rows = isqrt(size * height // (planes * width))
            if rows and size % (planes * rows) == 0 and rows * width == size // (planes * rows) * height:
                yield targets.reshape(-1, planes, rows, size // (planes * rows))


def _resized(images: Tensor, told: Tensor) -> Iterator[_Match]:
    """Of images against targets brought to their size, as a whole and plane by plane; and of crops."""
    shape, other = images.shape[-2:], told.shape[-2:]
    if other == shape:
        fitted = told
    elif other[0] >= shape[0] and other[1] >= shape[1]:
        fitted = F.adaptive_avg_pool2d(told, (shape[0], shape[1]))
    else:
        fitted = F.interpolate(told, size=shape, mode="bilinear", align_corners=False, antialias=True)
    # What is smooth at the finer size is rough at the coarser one.
    values = min(prod(map(min, shape, other)), prod(map(max, shape, other)) // SMOOTH**2)
    share = 1 / _content(images)
    planes = [fitted.mean(1, keepdim=True), *(torch.split(fitted, 1, 1) if fitted.shape[1] <= MOST_PARTS else ())]
    if fitted.shape[1] == images.shape[1] > 1:
        yield _Match(_squared_correlation(images, fitted), share, values)
    for plane in planes:
        yield _Match(_squared_correlation(images, plane.expand_as(images)), share, values)
    if other != shape:
        pair = (images, told) if told.shape[1] == images.shape[1] else (images.mean(1, True), told.mean(1, True))
        yield from _contained(*pair, min(pair[0][0].numel(), pair[1][0].numel()) // SMOOTH**2)


def _content(images: Tensor) -> Tensor:
    """Share of the variance of images [B, C, H, W] that isn't white noise, [B].

    The noise's variance as Immerkaer estimates it (Computer Vision and Image Understanding 64, 1996).
    """
    if min(images.shape[-2:]) < 3:
        return images.new_ones(len(images))
    kernel = images.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    rough = F.conv2d(images.flatten(0, 1)[:, None], kernel[None, None]).reshape(len(images), -1)
    noise = rough.square().mean(1) / kernel.square().sum()
    content = 1 - noise / images.flatten(1).var(1, correction=0)
    return content.nan_to_num(1.0).clamp(LEAST_CONTENT, 1.0)


def _contained(one: Tensor, other: Tensor, values: Tensor | int) -> Iterator[_Match]:
    """Of inputs [B, C, *S] in longer targets [B, C, *T], or of shorter targets in them, at the best place."""
    sizes = list(zip(one.shape[2:], other.shape[2:], strict=True))
    if all(small <= large for small, large in sizes):
        squared, _, tries = _best_place(one, other)
        yield _Match(squared, 1.0, values, tries)
    elif all(small >= large for small, large in sizes):
        squared, share, tries = _best_place(other, one)
        yield _Match(squared, share, values, tries)


def _best_place(small: Tensor, large: Tensor) -> tuple[Tensor, Tensor, int]:
    """Largest r^2 of ``small`` [B, C, *S] with a window of ``large`` [B, C, *T]; by Fourier transforms.

    Returns:
        r^2 [B], the window's share of the sum of squares of ``large`` about its mean [B], and the number of windows.
    """
    axes = tuple(range(2, large.ndim))
    sizes = large.shape[2:]
    centred = small - small.mean(tuple(range(1, small.ndim)), keepdim=True)
    base = large - large.mean(tuple(range(1, large.ndim)), keepdim=True)
    ones = torch.ones_like(centred)
    valid = tuple(slice(0, whole - part + 1) for whole, part in zip(sizes, small.shape[2:], strict=True))

    def windows(values: Tensor, kernel: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(values, s=sizes, dim=axes) * torch.fft.rfftn(kernel, s=sizes, dim=axes).conj()
        places: Tensor = torch.fft.irfftn(spectrum, s=sizes, dim=axes).sum(1)[(slice(None), *valid)].flatten(1)
        return places

    count, total = small[0].numel(), base.square().flatten(1).sum(1)
    squares = windows(base.square(), ones) - windows(base, ones).square() / count
    own = centred.square().flatten(1).sum(1)
    # A window of next to no variance is nobody's picture; what the transforms round off would be divided by it.
    telling = (squares > 1e-9 * total[:, None]) & (own > 0)[:, None]
    shares = torch.where(telling, windows(base, centred).square() / (squares * own[:, None]), torch.zeros_like(squares))
    best, place = shares.max(1)
    share = (squares.gather(1, place[:, None])[:, 0] / total).nan_to_num()
    return best.clamp(max=1.0), share.clamp(0.0, 1.0), shares.shape[1]


def _squared_correlation(one: Tensor, other: Tensor) -> Tensor:
    """r^2 over all entries of every sample, [B]; 0 where either is constant."""
    left, right = (values.flatten(1) - values.flatten(1).mean(1, keepdim=True) for values in (one, other))
    squared = (left * right).sum(1).square() / (left.square().sum(1) * right.square().sum(1))
    return squared.nan_to_num(0.0, 0.0, 0.0)


def _carry_together(inputs: Tensor, targets: Tensor) -> bool:
    """Whether one linear map of the targets gives most of the inputs of samples that it wasn't fitted to.

    Ridge regression of inputs on targets, each sample predicted by the map that is fitted to all others. The same map
    to inputs that were shifted from sample to sample shows what comes by chance.
    """
    if not targets.is_floating_point():
        return False
    flat, told = (each[:MOST_SAMPLES].double().reshape(min(len(each), MOST_SAMPLES), -1) for each in (inputs, targets))
    count = len(flat)
    flat, told = flat - flat.mean(0), told - told.mean(0)
    kernel, gram = told @ told.T, flat @ flat.T
    scale, total = float(kernel.trace()) / count, float(gram.trace()) * (count / (count - 1)) ** 2
    if not scale > 0 or not total > 0:
        return False
    identity = torch.eye(count, dtype=torch.float64, device=flat.device)
    for ridge in RIDGES:
        smoother = torch.linalg.solve(kernel + ridge * scale * identity, kernel) + 1 / count
        errors = (identity - smoother) / (1 - smoother.diagonal()).clamp_min(1e-12)[:, None]
        weights = errors.T @ errors
        explained = [1 - float((weights * gram.roll((shift, shift), (0, 1))).sum()) / total for shift in range(count)]
        if explained[0] >= EXPLAINED and explained[0] > max(explained[1:]):
            return True
    return False
