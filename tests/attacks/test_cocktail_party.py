"""The cocktail party attack: images of a batch from the gradient of an untrained network's first layer."""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
import torch
from contracts.attack import generator, observe_uploads
from torch import Tensor, nn

from riskaudit.attacks import AttackNotApplicable, CocktailParty, Reconstruction
from riskaudit.inputs.models import Normalized
from riskaudit.release import Batch
from riskaudit.studies.attacking import matched_order


def untrained(seed: int = 0, features: int = 784) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 256), nn.ReLU(), nn.Linear(256, 10)).double().eval()


def psnr(guess: Tensor, truth: Tensor) -> float:
    """The mean over samples, in dB."""
    return float(-10 * (guess - truth).square().flatten(1).mean(1).log10().mean())


def matched(found: Reconstruction, batch: Batch) -> Tensor:
    return found.inputs[matched_order(found.inputs, batch.inputs, len(batch))]


@pytest.mark.parametrize(("count", "limit"), [(4, 25.0), (8, 14.0)])
def test_digits_of_a_mean_come_apart(count: int, limit: float) -> None:
    batch = cases.mnist(count)
    found = CocktailParty(restarts=1).run(observe_uploads(untrained(), batch, f"mean:{count}"), generator())
    blind = psnr(torch.full_like(batch.inputs, float(batch.inputs.mean())), batch.inputs)
    assert found.status == ("converged",)
    assert psnr(matched(found, batch), batch.inputs) > limit > blind + 2


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "normalised"])
def test_independent_sources_come_back(wrapped: bool) -> None:
    drawn = torch.rand(3, 1, 40, 40, generator=generator(), dtype=torch.float64)
    sources = (drawn > 0.8).double() * torch.linspace(0.5, 1, 1600, dtype=torch.float64).reshape(40, 40)
    batch, model = Batch(sources, torch.tensor([1, 4, 7])), untrained(features=1600)
    model = Normalized(model, [0.2], [0.5]) if wrapped else model
    observation = observe_uploads(model, batch, "mean:3")
    for known in (observation, replace(observation, input_range=None)):
        found = CocktailParty(restarts=2).run(known, generator())
        assert psnr(matched(found, batch), sources) > 20


def test_samples_that_are_alike_leave_places_open() -> None:
    batch = cases.mnist(2).select([0, 0, 1])
    found = CocktailParty(restarts=1).run(observe_uploads(untrained(), batch, "mean:3"), generator())
    at_prior = (found.inputs == cases.PRIOR.mean).flatten(1).all(1)
    assert int(at_prior.sum()) == 1


def test_steps_used_up_are_said_to_be() -> None:
    observation = observe_uploads(untrained(), cases.mnist(4), "mean:4")
    assert CocktailParty(steps=2, restarts=1).run(observation, generator()).status == ("not_converged",)


def test_not_applicable_to_convolutions() -> None:
    with pytest.raises(AttackNotApplicable, match="fully connected"):
        CocktailParty().run(observe_uploads(cases.lenet(8), cases.digits(2), "mean:2"), generator())
