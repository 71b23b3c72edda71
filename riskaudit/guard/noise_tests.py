"""Whether what an update holds besides its batch's release is the noise that was promised.

Every tensor is tested by itself, and the whole: noise on a large layer hides the lack of it on a small bias. Residuals
are turned into normal scores, which are exactly standard normal and independent where the noise has its law, so that
every test has the probability of rejection that it states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from scipy.stats import chi2, gamma, norm
from torch import Tensor

from riskaudit.guard.noise_traces import REJECTION
from riskaudit.release import Noise


def normal_scores(difference: Tensor, noise: Noise) -> Tensor:
    """Standard normal where ``difference`` is noise of this law: the residual through both distribution functions."""
    scaled = difference / noise.scale
    if noise.law == "gaussian":
        return scaled
    scores: Tensor = -scaled.sign() * torch.special.ndtri(0.5 * torch.exp(-scaled.abs()))
    return scores


def noise_mismatch(noise: Noise, difference: Tensor, mean: Tensor, shapes: Mapping[str, torch.Size]) -> str | None:
    """Why ``difference`` [P] isn't noise of this law beside a release ``mean`` [P]; None where it can be.

    Args:
        noise: its law.
        difference: an update minus its release, float64.
        mean: the release, float64.
        shapes: of the tensors that both consist of, by name.
    """
    names, sizes = list(shapes), [shape.numel() for shape in shapes.values()]
    if len(sizes) > 1:
        # The whole, of which every sum is that of the tensors'.
        names, sizes = [*names, ""], [*sizes, len(difference)]
    failure = REJECTION / len(sizes)
    scaled = difference / noise.scale
    scores = normal_scores(difference, noise)
    magnitudes = _sums(scaled.square() if noise.law == "gaussian" else scaled.abs(), sizes)
    for name, size, statistic in zip(names, sizes, magnitudes, strict=True):
        low, high = _limits(noise.law, size, failure)
        if size and not low <= statistic <= high:
            where = f" in {name}" if name else ""
            times = math.sqrt(_sums(scaled.square(), sizes)[names.index(name)] / size) * noise.scale / noise.std
            return (
                f"the update minus this batch's release isn't noise of {noise.law}:{noise.scale:g}{where}: its size "
                f"is {times:.3g} times what it should be; add the noise that the guard was told of to every tensor, or "
                "tell it of what was added"
            )
    # A multiple of the release hides below large noise in all directions but its own.
    furthest = _furthest(failure)
    for name, along, squares in zip(names, _sums(scores * mean, sizes), _sums(mean.square(), sizes), strict=True):
        if squares > 0 and not abs(along) <= furthest * math.sqrt(squares):
            where = f" in {name}" if name else ""
            return f"the update isn't this batch's release and noise{where}: it holds too much or too little of it"
    return None


def _sums(terms: Tensor, sizes: Sequence[int]) -> list[float]:
    """Of the terms [P] of each tensor, and of all where their sizes say so."""
    parts = torch.split(terms, [*sizes[:-1]] if len(sizes) > 1 else [*sizes])
    sums = torch.stack([part.sum() for part in parts])
    return [*sums.tolist(), *([float(sums.sum())] if len(sizes) > 1 else [])]


@cache
def _furthest(failure: float) -> float:
    return float(norm.isf(failure))


@cache
def _limits(law: str, count: int, failure: float) -> tuple[float, float]:
    """Between which the size of ``count`` entries lies but for ``failure`` at either end."""
    expected = chi2(count) if law == "gaussian" else gamma(count)
    return (float(expected.ppf(failure)), float(expected.isf(failure))) if count else (0.0, 0.0)
