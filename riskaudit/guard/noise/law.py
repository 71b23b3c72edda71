"""Whether what an update holds besides its batch's release is the noise that was promised.

Every tensor is tested by itself, and the whole: noise on a large layer hides the lack of it on a small bias. So are
rows, columns and runs of entries, of which noise on the rest of a tensor hides the lack: one row of a first layer's
gradient may be an input. Residuals are turned into normal scores, which are exactly standard normal and independent
where the noise has its law, so that every test has the probability of rejection that it states.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from scipy.stats import chi2, norm
from torch import Tensor

from riskaudit.guard.noise.order import Extremes, digit_width, extremes_of
from riskaudit.guard.noise.traces import REJECTION
from riskaudit.release import Noise

# Entries that follow each other and are tested together. Of fewer, noise on a coarse grid is all 0 too often.
RUN = 16


def normal_scores(difference: Tensor, noise: Noise) -> Tensor:
    """Standard normal where ``difference`` is noise of this law: the residual through both distribution functions."""
    scaled = difference / noise.scale
    if noise.law == "gaussian":
        return scaled
    scores: Tensor = -scaled.sign() * torch.special.ndtri(0.5 * torch.exp(-scaled.abs()))
    return scores


def observed_noise(
    noise: Noise, update: Tensor, mean: Tensor, shapes: Iterable[torch.Size]
) -> tuple[Tensor, list[Extremes]]:
    """Normal scores [P] of the noise on an update [P] beside its release ``mean`` [P], and the largest of them."""
    scores = normal_scores(update - mean, noise)
    sizes = [shape.numel() for shape in shapes]
    return scores, extremes_of(scores.numpy(), sizes, digit_width(update.numpy(), noise.std))


def noise_mismatch(noise: Noise, difference: Tensor, mean: Tensor, shapes: Mapping[str, torch.Size]) -> str | None:
    """Why ``difference`` [P] isn't noise of this law beside a release ``mean`` [P]; None where it can be."""
    sizes = [shape.numel() for shape in shapes.values()]
    scores = normal_scores(difference, noise)
    parts = list(zip(shapes, *(torch.split(vector, sizes) for vector in (difference, scores, mean)), strict=True))
    if len(parts) > 1:
        parts.append(("", difference, scores, mean))
    failure = REJECTION / len(parts)
    for name, residual, _, _ in parts:
        low, high = size_limits(noise.degrees(len(residual)), failure)
        if len(residual) and not low <= float(noise.size(residual)) <= high:
            times = float(residual.norm()) / math.sqrt(len(residual)) / noise.std
            return (
                f"the update minus this batch's release isn't noise of {noise.law}:{noise.scale:g}{_in(name)}: its "
                f"size is {times:.3g} times what it should be; add the noise that the guard was told of to every "
                "tensor, or tell it of what was added"
            )
    # A multiple of the release hides below large noise in all directions but its own.
    furthest = _furthest(failure)
    for name, _, part_scores, release in parts:
        length = float(release.norm())
        if length > 0 and not abs(float(part_scores @ release)) <= furthest * length:
            return f"the update isn't this batch's release and noise{_in(name)}: it holds too much or too little of it"
    uneven = _first_uneven(dict(zip(shapes, torch.split(scores, sizes), strict=True)), shapes)
    if uneven is None:
        return None
    return (
        f"the update minus this batch's release isn't noise of {noise.law}:{noise.scale:g} all over {uneven}: some of "
        "its rows, columns or entries hold far less or far more; add the noise that the guard was told of to all of it"
    )


def _first_uneven(scores: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> str | None:
    """The first tensor of which a row, column, run or entry isn't noise, by its normal scores; None where all are."""
    groups = {name: _groups(own.square().reshape(shapes[name])) for name, own in scores.items()}
    # As many tests as there are lengths of groups, and one for the largest entry.
    failure = REJECTION / max(1, sum(1 + len(own) for own in groups.values()))
    for name, own in scores.items():
        if len(own) and not float(own.abs().max()) <= _furthest(failure / len(own) / 2):
            return name
        for sums, length in groups[name]:
            low, high = size_limits(length, failure / len(sums) / 2)
            if not bool(((low <= sums) & (sums <= high)).all()):
                return name
    return None


def _groups(squares: Tensor) -> list[tuple[Tensor, int]]:
    """Sums of squared scores over a tensor's slices along every axis and over its runs, with the length of each."""
    size, groups = squares.numel(), list[tuple[Tensor, int]]()
    for axis, count in enumerate(squares.shape):
        if count > 1 and size // count >= RUN:
            groups.append((squares.movedim(axis, 0).reshape(count, -1).sum(1), size // count))
    if size >= 2 * RUN:
        runs = squares.reshape(-1)[: size - size % RUN].reshape(-1, RUN)
        groups.append((runs.sum(1), RUN))
    return groups


def _in(name: str) -> str:
    return f" in {name}" if name else ""


@cache
def _furthest(failure: float) -> float:
    return float(norm.isf(failure))


@cache
def size_limits(degrees: float, failure: float) -> tuple[float, float]:
    """Numbers between which the size of a draw (`Noise.size`) lies but for ``failure`` at either end."""
    return (float(chi2.ppf(failure, degrees)), float(chi2.isf(failure, degrees))) if degrees else (0.0, 0.0)
