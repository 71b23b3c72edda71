"""An attack on pure noise isn't taken for a success; the best row is chosen by the attacker's own objective."""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
import torch
from contracts.attack import generator, observe
from torch import Tensor

from riskaudit.attacks import (
    BayesOptimal,
    DeepLeakage,
    InvertingGradients,
    Observation,
    Reconstruction,
    explains,
    plausibility,
)
from riskaudit.attacks.matching import SquaredDistance
from riskaudit.attacks.optimise.consensus import GroupConsistency
from riskaudit.attacks.optimise.minimisers import Function, Minimiser, Minimum
from riskaudit.attacks.optimise.objectives import Objective, Term
from riskaudit.attacks.optimise.search import best_of, reconstruct
from riskaudit.attacks.plausibility import at_noise_floor
from riskaudit.release import Batch
from riskaudit.results import Status


def at(observation: Observation, batch: Batch) -> Reconstruction:
    """A reconstruction that says so much."""
    count = len(batch)
    zeros = torch.zeros(count)
    return Reconstruction(batch.inputs, zeros.double(), ("converged",) * count, zeros.long(), 1, 1.0, batch.targets)


SPECS = ["gradient", "gaussian:1e-3", "laplace:1e-3", "clip:0.5,gaussian:1e-4,mask:0.5"]


@pytest.mark.parametrize("spec", SPECS)
def test_the_truth_explains_and_another_image_does_not(spec: str) -> None:
    batch = cases.mnist(6, 8)
    observation = observe(cases.lenet(8), batch, spec)
    assert explains(observation, at(observation, batch)) == [True] * 6
    others = Batch(batch.inputs.flip(0), batch.targets)
    assert explains(observation, at(observation, others)) == [False] * 6


@pytest.mark.slow
def test_the_bound_is_kept_by_the_share_of_noise_that_it_says() -> None:
    batch = cases.mnist(1, 8)
    observation = observe(cases.lenet(8), batch, "gaussian:0.01")
    many = replace(observation.select([0] * 400), released=observation.release.mean(batch).repeat(400, 1))
    noise = torch.stack([observation.release.sample_noise(generator(seed)) for seed in range(400)])
    many = replace(many, released=many.released + noise)
    assert sum(explains(many, at(many, batch.select([0] * 400)))) >= 397


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "attack",
    [DeepLeakage(steps=40), InvertingGradients(steps=60), BayesOptimal(steps=60)],
    ids=lambda attack: attack.name,
)
@pytest.mark.parametrize("spec", ["gradient", "gaussian:0.01"])
def test_pure_noise_is_not_explained(attack: DeepLeakage, spec: str) -> None:
    observation = observe(cases.lenet(8), cases.mnist(2, 8), spec)
    drawn = torch.randn(observation.released.shape, generator=generator(2), dtype=torch.float64)
    noise = drawn * observation.released.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
    found = attack.run(replace(observation, released=noise), generator())
    assert explains(replace(observation, released=noise), found) == [False, False]
    truthful = attack.run(observation, generator())
    assert bool((found.objective > truthful.objective).all())


def test_a_failed_attack_explains_nothing() -> None:
    batch = cases.mnist(1, 8)
    observation = observe(cases.lenet(8), batch)
    assert explains(observation, replace(at(observation, batch), status=("failed",))) == [False]


def test_the_best_row_is_the_attackers_own_choice() -> None:
    observation = replace(observe(cases.lenet(8), cases.mnist(3, 8)), input_range=(0.0, 0.4))
    points = torch.arange(6.0).double()[:, None].expand(6, 64)
    value = torch.tensor([3.0, 2.0, 1.0, torch.inf, torch.inf, torch.inf]).double()
    status = ("converged", "not_converged", "converged", "failed", "failed", "failed")
    outcome = Minimum(points, value, status, torch.arange(6))
    found = best_of(observation, observation.bound_prior(), outcome, 2, 1.0)
    assert found.inputs[:2, 0, 0, 0].tolist() == [1, 2]
    assert found.objective.tolist() == [2, 1, float("inf")]
    assert found.status == ("not_converged", "converged", "failed")
    assert found.steps.tolist()[:2] == [1, 2]
    # The prior's mean 0.5, in the range of the inputs.
    assert bool((found.inputs[2] == 0.4).all())


class Jumps(Minimiser):
    """Goes to the truth where it is told to, turn by turn, else nowhere."""

    def __init__(self, truth: Tensor, found: list[list[bool]]) -> None:
        self.truth, self.found, self.turns = truth, found, list[list[int]]()

    def minimise(self, function: Function, start: Tensor, unit: Tensor | None = None) -> Minimum:
        assert isinstance(function, Objective)
        assert unit is not None
        assert len(unit) == len(start)
        samples = function.samples.tolist()
        there = torch.tensor([self.found[len(self.turns)][sample] for sample in samples])
        self.turns.append(samples)
        points = torch.where(there[:, None], self.truth[samples], start)
        status: tuple[Status, ...] = ("converged",) * len(start)
        return Minimum(points, function.evaluate(points)[0], status, torch.full((len(start),), len(self.turns)))


@pytest.mark.parametrize("spec", ["gradient", "gaussian:0.001"])
def test_starts_end_at_the_noise_floor(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plausibility, "FLOOR_DEVIATIONS", 10.0)
    batch = cases.mnist(3, 8)
    observation = observe(cases.lenet(8), batch, spec)
    jumps = Jumps(batch.inputs.flatten(1), [[True, False, False], [False, True, False], [False] * 3, [False] * 3])
    found = reconstruct(
        observation, generator(), lambda labelled: Objective.of(labelled, 4, SquaredDistance()), jumps, "gaussian", 4
    )
    assert jumps.turns == [[0, 1, 2], [1, 2], [2], [2]]
    assert torch.equal(found.inputs[:2], batch.inputs[:2])
    assert found.steps.tolist()[:2] == [1, 2]
    assert at_noise_floor(observation, found.inputs).tolist() == [True, True, False]
    # Rows that see each other are searched together, whatever the noise.
    together = Jumps(batch.inputs.flatten(1), [[True] * 3])
    terms = (Term(GroupConsistency(), 0.01),)
    objective = Objective.of(observation, 2, SquaredDistance(), terms)
    reconstruct(observation, generator(), lambda _: objective, together, "gaussian", 2)
    assert together.turns == [[0, 0, 1, 1, 2, 2]]


def test_restarts_do_not_make_it_worse() -> None:
    observation = observe(cases.lenet(8), cases.mnist(1, 8), "gaussian:0.01")
    few, many = (
        DeepLeakage(steps=8, restarts=restarts, start="mean").run(observation, generator()) for restarts in (1, 4)
    )
    assert many.restarts == 4
    assert bool((many.objective <= few.objective).all())
