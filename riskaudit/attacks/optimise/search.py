"""The course of every attack by descent: labels, starts, minimisation, the best row per sample.

Starts of a sample that don't know of each other take turns, and end at the noise floor
(`riskaudit.attacks.plausibility`), where a further one could only fit the noise better.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from riskaudit.attacks.base import Observation, Reconstruction
from riskaudit.attacks.labels import with_labels
from riskaudit.attacks.optimise.minimisers import Minimiser, Minimum
from riskaudit.attacks.optimise.objectives import Objective
from riskaudit.attacks.optimise.starts import Start, draw_starts
from riskaudit.attacks.plausibility import at_noise_floor
from riskaudit.priors.base import BoundPrior
from riskaudit.results import Status


def reconstruct(
    observation: Observation,
    generator: torch.Generator,
    objective: Callable[[Observation], Objective],
    minimiser: Minimiser,
    start: Start,
    restarts: int,
) -> Reconstruction:
    """Run one attack.

    Args:
        observation: what the attacker knows.
        generator: of the starts.
        objective: makes the objective of all rows from an observation with known labels.
        minimiser: of all rows.
        start: kind of the first guesses.
        restarts: rows per sample, at most.

    Raises:
        AttackNotApplicable: the labels can't be recovered.
    """
    began = time.perf_counter()
    labelled = with_labels(observation)
    prior = labelled.bound_prior()
    starts = draw_starts(start, labelled, prior, restarts, generator)
    # The papers' step sizes are for normalised pixels.
    unit = prior.variance.sqrt().repeat_interleave(restarts)
    with torch.no_grad():
        function = objective(labelled)
        if restarts == 1 or function.couples:
            outcome = minimiser.minimise(function, starts, unit)
        else:
            outcome = _in_turns(labelled, function, minimiser, starts, unit, restarts)
    return best_of(labelled, prior, outcome, restarts, time.perf_counter() - began)


def _in_turns(
    observation: Observation, objective: Objective, minimiser: Minimiser, starts: Tensor, unit: Tensor, restarts: int
) -> Minimum:
    """One start of every sample after the other; those whose best row is at the noise floor have no further ones."""
    count = len(observation)
    points, value = starts.clone(), starts.new_full((len(starts),), torch.inf, dtype=torch.float64)
    status: list[Status] = ["failed"] * len(starts)
    steps = torch.zeros(len(starts), dtype=torch.long, device=starts.device)
    searched = list(range(count))
    for turn in range(restarts):
        rows = [index * restarts + turn for index in searched]
        part = minimiser.minimise(objective.select(rows), starts[rows], unit[rows])
        points[rows], value[rows], steps[rows] = part.points, part.value, part.steps
        for row, state in zip(rows, part.status, strict=True):
            status[row] = state
        ended = at_noise_floor(observation.select(searched), part.points).tolist()
        searched = [index for index, is_explained in zip(searched, ended, strict=True) if not is_explained]
        if not searched:
            break
    return Minimum(points, value, tuple(status), steps)


def best_of(
    observation: Observation, prior: BoundPrior, outcome: Minimum, restarts: int, seconds: float
) -> Reconstruction:
    """The row with the least objective for each sample; the prior's mean where no row came to anything."""
    count = len(observation)
    best = outcome.value.reshape(count, restarts).argmin(-1)
    rows = torch.arange(count, device=best.device) * restarts + best
    status = tuple(outcome.status[row] for row in rows.tolist())
    failed = torch.tensor([state == "failed" for state in status], device=rows.device)
    points = torch.where(failed[:, None], without_guess(observation, prior), outcome.points[rows])
    return Reconstruction(
        inputs=observation.images(points),
        objective=outcome.value[rows],
        status=status,
        steps=outcome.steps[rows],
        restarts=restarts,
        seconds=seconds,
        targets=observation.known_targets,
    )


def without_guess(observation: Observation, prior: BoundPrior) -> Tensor:
    """The prior's mean in the range of the inputs, [B, d]: what is left where an attack fails."""
    return prior.mean if observation.input_range is None else prior.mean.clamp(*observation.input_range)
