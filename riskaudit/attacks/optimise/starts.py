"""Where attacks begin: random guesses that need nothing but public knowledge."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from riskaudit.attacks.base import Observation
from riskaudit.priors.base import BoundPrior

Start: TypeAlias = Literal["gaussian", "uniform", "prior", "mean"]

# How far from the prior's mean samples of one class begin, in its standard deviations.
CLASSMATE_SPREAD = 0.3


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
        drawn[::restarts] = apart(observation, generator).cpu().double()
    if kind == "prior":
        return repeated.mean + repeated.root(drawn.to(like))
    return repeated.mean + (drawn.to(like.device) * repeated.variance.sqrt()[:, None]).to(like)


def apart(observation: Observation, generator: torch.Generator, spread: float = CLASSMATE_SPREAD) -> Tensor:
    """Displacements from the prior's mean, [B, n d]: 0 but for samples of one class in an upload.

    They are in the prior's standard deviations. Begun at the same point, samples of one class go the same way for ever:
    what is released is symmetric in them.

    Args:
        observation: B uploads, with labels.
        generator: on the CPU.
        spread: of the samples that have a classmate, in the prior's standard deviations.
    """
    size, count = observation.upload_size, len(observation)
    displaced = observation.released.new_zeros(count, size, observation.dimension)
    if size > 1:
        targets = observation.known_targets.reshape(count, size, -1)
        equal = (targets[:, :, None] == targets[:, None]).all(-1).sum(-1) > 1
        drawn = spread * torch.randn(displaced.shape, generator=generator, dtype=torch.float64)
        displaced = torch.where(equal[..., None], drawn.to(displaced), displaced)
    return displaced.reshape(count, -1)
