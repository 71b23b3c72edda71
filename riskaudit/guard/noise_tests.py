"""Whether what an update holds besides its batch's release is the noise that was promised.

Every tensor is tested by itself, and the whole: noise on a large layer hides the lack of it on a small bias. Residuals
are turned into normal scores, which are exactly standard normal and independent where the noise has its law, so that
every test has the probability of rejection that it states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import torch
from scipy.stats import chi2, gamma, norm
from torch import Tensor

from riskaudit.release import Noise

# Probability that true noise is taken for something else, over all tests of one kind together.
REJECTION = 1e-9


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
    parts = list(zip(names, torch.split(difference, sizes), torch.split(mean, sizes), strict=True))
    if len(parts) > 1:
        parts.append(("", difference, mean))
    failure = REJECTION / len(parts)
    for name, one, _ in parts:
        scaled = one / noise.scale
        statistic = float(scaled.square().sum() if noise.law == "gaussian" else scaled.abs().sum())
        low, high = _limits(noise.law, len(one), failure)
        if len(one) and not low <= statistic <= high:
            where = f" in {name}" if name else ""
            return (
                f"the update minus this batch's release isn't noise of {noise.law}:{noise.scale:g}{where}: its size "
                f"is {float(one.norm()) / math.sqrt(len(one)) / noise.std:.3g} times what it should be; add the noise "
                "that the guard was told of to every tensor, or tell it of what was added"
            )
    # A multiple of the release hides below large noise in all directions but its own.
    furthest = float(norm.isf(failure))
    for name, one, release in parts:
        length = float(release.norm())
        if length > 0 and not abs(float(normal_scores(one, noise) @ release)) / length <= furthest:
            where = f" in {name}" if name else ""
            return f"the update isn't this batch's release and noise{where}: it holds too much or too little of it"
    return None


@cache
def _limits(law: str, count: int, failure: float) -> tuple[float, float]:
    """Between which the size of ``count`` entries lies but for ``failure`` at either end."""
    expected = chi2(count) if law == "gaussian" else gamma(count)
    return (float(expected.ppf(failure)), float(expected.isf(failure))) if count else (0.0, 0.0)
