"""Where attacks begin: random guesses that need nothing but public knowledge."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from riskaudit.attacks.base import Observation
from riskaudit.priors.base import BoundPrior

Start: TypeAlias = Literal["gaussian", "uniform", "prior", "mean"]


def draw_starts(
    kind: Start, observation: Observation, prior: BoundPrior, restarts: int, generator: torch.Generator
) -> Tensor:
    """The first guesses, [B * restarts, n d], rows of one upload together.

    Args:
        kind: "gaussian", independent coordinates with the prior's mean and standard deviation (the papers' standard
            normal start in normalised pixels); "uniform" in the range of the inputs, or "gaussian" where that
            isn't known; "prior", a draw from the prior itself; "mean", the prior's mean first, then as "gaussian".
        observation: B samples.
        prior: at these samples.
        restarts: guesses per sample.
        generator: on the CPU.
    """
    count, dimension = len(observation), observation.upload_dimension
    like = observation.released
    rows = [index for index in range(count) for _ in range(restarts)]
    shape = (count * restarts, dimension)
    if kind == "uniform" and observation.input_range is not None:
        low, high = observation.input_range
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * drawn).to(like)
    repeated = prior.select(rows)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "mean":
        drawn[::restarts] = 0
    if kind == "prior":
        return repeated.mean + repeated.root(drawn.to(like))
    return repeated.mean + (drawn.to(like.device) * repeated.variance.sqrt()[:, None]).to(like)


def in_ball(count: int, dimension: int, num_points: int, radius: float, generator: torch.Generator) -> Tensor:
    """Points uniformly distributed in a ball, in pairs u and -u, so that their average is the centre.

    Args:
        count: rows R.
        dimension: d.
        num_points: k, even.
        radius: of the ball as a root mean square per coordinate, data units.
        generator: on the CPU.

    Returns:
        [R, k, d], float64.
    """
    direction = torch.randn(count, num_points // 2, dimension, generator=generator, dtype=torch.float64)
    reach = torch.rand(count, num_points // 2, 1, generator=generator, dtype=torch.float64) ** (1 / dimension)
    half = direction / direction.norm(dim=-1, keepdim=True) * reach * radius * dimension**0.5
    return torch.cat([half, -half], dim=1)
