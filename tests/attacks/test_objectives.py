"""Objectives and their gradients: against autograd through the release itself, and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cases
import pytest
import torch
import torch.nn.functional as F
from contracts.attack import generator, observe
from torch import Tensor, nn

from riskaudit.attacks.matching import (
    CosineDistance,
    Matching,
    NegativeLogLikelihood,
    SquaredDistance,
    entry_weights,
)
from riskaudit.attacks.optimise import objectives, regularisers
from riskaudit.attacks.optimise.batch_norms import BatchNormStatistics
from riskaudit.attacks.optimise.consensus import GroupConsistency
from riskaudit.attacks.optimise.objectives import Objective, Term
from riskaudit.attacks.optimise.regularisers import (
    GaussianPenalty,
    LaplacePenalty,
    PixelRange,
    RangeDistance,
    Regulariser,
    SquaredNorm,
    TotalVariation,
)
from riskaudit.attacks.optimise.sampling import Sampling
from riskaudit.attacks.optimise.starts import draw_starts
from riskaudit.release import Batch, PerSampleRelease

MATCHINGS: dict[str, Matching] = {
    "squared": SquaredDistance(),
    "cosine": CosineDistance(),
    "cosine-linear": CosineDistance("linear"),
    "cosine-exponential": CosineDistance("exponential"),
    "likelihood": NegativeLogLikelihood(0.1),
    "likelihood-laplace": NegativeLogLikelihood(0.1, "laplace"),
}
RELEASES = ["gradient", "clip:0.5", "clip:0.5,gaussian:0.1", "laplace:0.1,mask:0.3", "mask:0.3,gaussian:0.1"]


def guesses(count: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.rand(count, *shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("spec", RELEASES)
@pytest.mark.parametrize("name", MATCHINGS)
@pytest.mark.parametrize(("model", "batch"), [(lambda: cases.lenet(8), lambda: cases.mnist(2, 8))], ids=["lenet"])
def test_gradient_is_that_of_the_release(
    model: Callable[[], nn.Module], batch: Callable[[], Batch], name: str, spec: str
) -> None:
    observation = observe(model(), batch(), spec)
    objective = Objective.of(observation, 2, MATCHINGS[name])
    points = guesses(4, observation.dimension)
    value, gradient = objective.evaluate(points)
    measure = MATCHINGS[name].bind(objective.observation)
    inputs = points.clone().requires_grad_()
    expected = measure(observation.release.mean(objective.observation.batch(inputs)))
    (slope,) = torch.autograd.grad(expected.sum(), inputs)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-7, atol=1e-10 * float(slope.abs().max()))


@pytest.mark.parametrize("spec", ["gaussian:0.1", "mask:0.3,laplace:0.2", "gaussian:0.1,mask:0.3"])
def test_likelihood_is_the_releases_own(spec: str) -> None:
    observation = observe(cases.lenet(8), cases.mnist(2, 8), spec)
    points = guesses(2, observation.dimension)
    value, _ = Objective.of(observation, 1, NegativeLogLikelihood()).evaluate(points)
    expected = -observation.release.log_prob(observation.released, observation.batch(points))
    torch.testing.assert_close(value, expected.detach())


def test_distances_in_numbers() -> None:
    observation = observe(cases.lenet(8), cases.mnist(2, 8))
    observed = observation.released
    squared = SquaredDistance().bind(observation)
    torch.testing.assert_close(squared(observed + 0.5), torch.full((2,), 0.25 * observed.shape[1]).double())
    cosine = CosineDistance("exponential").bind(observation)
    torch.testing.assert_close(cosine(3 * observed), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(cosine(-observed), torch.full((2,), 2.0).double())
    assert cosine(torch.zeros_like(observed)).tolist() == [1, 1]


def test_weights_of_layers() -> None:
    release = PerSampleRelease(cases.mlp((36, 16, 10)), F.cross_entropy)
    sizes = [36 * 16, 16, 160, 10]
    parts = entry_weights(release, "linear").split(sizes)
    assert [float(part[0]) for part in parts] == [1, 0.75, 0.5, 0.25]
    parts = entry_weights(release, "exponential").split(sizes)
    torch.testing.assert_close(torch.stack([part[-1] for part in parts]), torch.exp(-torch.arange(4).double()))
    assert float(entry_weights(release, "equal").sum()) == release.num_entries


def test_entries_that_carry_noise() -> None:
    model = cases.mlp((36, 16, 10))
    count = PerSampleRelease(model, F.cross_entropy).num_entries
    for spec, share in (("gradient", 1), ("mask:0.5,gaussian:1", 1), ("gaussian:1,mask:0.5", 0.5)):
        assert float(PerSampleRelease(model, F.cross_entropy, spec).noisy_entries.sum()) == round(share * count)


REGULARISERS: dict[str, Regulariser] = {
    "variation-mean": TotalVariation(),
    "variation-sum": TotalVariation("sum"),
    "norm": SquaredNorm(),
    "gaussian": GaussianPenalty(),
    "laplace": LaplacePenalty(),
    "range": PixelRange(),
    "range-distance": RangeDistance(),
    "batch-norm": BatchNormStatistics(),
}


@pytest.mark.parametrize("name", REGULARISERS)
def test_slopes_of_regularisers(name: str) -> None:
    observation = observe(cases.residual(3), cases.cifar(2, 6))
    penalty = REGULARISERS[name].bind(observation, torch.arange(2))
    points = 2 * guesses(2, *observation.input_shape) - 0.5
    direction = guesses(2, *observation.input_shape, seed=2)
    inputs = points.clone().requires_grad_()
    value = penalty(inputs)
    assert value.shape == (2,)
    assert bool((value > 0).all())
    (gradient,) = torch.autograd.grad(value.sum(), inputs)
    slope = (gradient * direction).flatten(1).sum(-1)
    step = 1e-6
    difference = (penalty(points + step * direction) - penalty(points - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-7)


def test_total_variation_in_numbers() -> None:
    observation = observe(cases.lenet(8), cases.mnist(2, 8))
    samples = torch.arange(1)
    ramp = torch.arange(8.0).double().expand(1, 1, 8, 8)
    assert float(TotalVariation().bind(observation, samples)(ramp)) == 1
    assert float(TotalVariation("sum").bind(observation, samples)(ramp)) == 56
    flat = replace(observation, input_shape=(64,))
    assert float(TotalVariation().bind(flat, samples)(ramp.flatten(1))) == 0


def test_gaussian_prior_in_numbers() -> None:
    observation = observe(cases.lenet(8), cases.mnist(1, 8))
    penalty = GaussianPenalty().bind(observation, torch.arange(1))
    inputs = torch.full((1, 1, 8, 8), cases.PRIOR.mean + 2 * cases.PRIOR.std, dtype=torch.float64)
    assert float(penalty(inputs)) == pytest.approx(64 * 2)


def test_pixels_within_their_range_cost_nothing() -> None:
    observation = observe(cases.lenet(8), cases.mnist(1, 8))
    penalty = PixelRange().bind(observation, torch.arange(1))
    assert float(penalty(guesses(1, 1, 8, 8))) == 0
    assert float(penalty(torch.full((1, 1, 8, 8), 1.5).double())) == 16
    inside, outside = guesses(1, 1, 8, 8).requires_grad_(), torch.full((1, 1, 8, 8), 1.5).double()
    distance = RangeDistance().bind(observation, torch.arange(1))
    assert float(distance(outside)) == pytest.approx(4)
    (slope,) = torch.autograd.grad(distance(inside).sum(), inside)
    assert float(slope.abs().max()) == 0
    unknown = PixelRange().bind(replace(observation, input_range=None), torch.arange(1))
    assert float(unknown(torch.full((1, 1, 8, 8), 1.5).double())) == 0


def test_statistics_of_one_guess() -> None:
    batch = cases.cifar(2, 6)
    observation = observe(cases.residual(3), batch)
    model = observation.release.model
    penalty = BatchNormStatistics().bind(observation, torch.arange(2))(batch.inputs)
    stem = model.stem(batch.inputs)
    second = model.conv(torch.tanh(model.norm1(stem)))
    expected = torch.zeros(2).double()
    for layer, values in ((model.norm1, stem), (model.norm2, second)):
        for index in range(2):
            one = values[index].flatten(1)
            expected[index] += (one.mean(-1) - layer.running_mean).norm() + (
                one.var(-1, correction=0) - layer.running_var
            ).norm()
    torch.testing.assert_close(penalty, expected.detach())


@pytest.mark.parametrize("why", ["unknown", "no layers"])
def test_statistics_that_are_not_there_cost_nothing(why: str) -> None:
    batch, model = cases.cifar(2, 6), cases.residual(3)
    if why == "no layers":
        batch, model = cases.mnist(2, 8), cases.lenet(8)
    observation = replace(observe(model, batch), batch_norm_statistics=why != "unknown")
    assert BatchNormStatistics().bind(observation, torch.arange(2))(batch.inputs).tolist() == [0, 0]


def test_group_consistency() -> None:
    observation = observe(cases.lenet(8), cases.mnist(2, 8))
    objective = Objective.of(observation, 2, SquaredDistance(), (Term(GroupConsistency(), 1.0),), matching_weight=0.0)
    points = torch.stack([torch.full((64,), value) for value in (0.0, 1.0, 3.0, 3.0)]).double()
    value, gradient = objective.evaluate(points)
    assert value.tolist() == [0.25, 0.25, 0, 0]
    torch.testing.assert_close(gradient, (2 / 64) * torch.tensor([-0.5, 0.5, 0, 0]).double()[:, None].expand(4, 64))
    # Rows of one sample leave together.
    assert objective.released_together(torch.tensor([True, False, True, True])).tolist() == [False, False, True, True]
    part = objective.select([2, 3])
    assert part.evaluate(points[2:])[0].tolist() == [0, 0]


def test_the_weight_of_the_matching_moves_to_its_final_value() -> None:
    observation = observe(cases.lenet(8), cases.mnist(1, 8))
    objective = Objective.of(observation, 1, SquaredDistance(), first_matching_weight=0.01)
    assert [round(objective.matching_weight_at(share), 12) for share in (0, 0.25, 0.5, 1)] == [0.01, 0.1, 1, 1]
    assert Objective.of(observation, 1, SquaredDistance(), matching_weight=2.0).matching_weight_at(0) == 2
    points = guesses(1, 64)
    early, late = objective.evaluate(points, 0.0), objective.evaluate(points, 1.0)
    # Values are always those of the final objective.
    assert torch.equal(early[0], late[0])
    torch.testing.assert_close(100 * early[1], late[1])


def test_rows_can_be_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    observation = observe(cases.lenet(8), cases.mnist(3, 8), "gaussian:0.1")
    points = guesses(6, 64)
    terms = (Term(TotalVariation(), 0.1),)
    whole = Objective.of(observation, 2, NegativeLogLikelihood(), terms).evaluate(points)
    monkeypatch.setattr(objectives, "CHUNK_ENTRIES", 4 * observation.release.num_entries)
    objective = Objective.of(observation, 2, NegativeLogLikelihood(), terms)
    assert len(objective._chunks) == 2
    for found, expected in zip(objective.evaluate(points), whole, strict=True):
        torch.testing.assert_close(found, expected)
    picked = objective.select([5, 0]).evaluate(points[[5, 0]])
    torch.testing.assert_close(picked[0], whole[0][[5, 0]])
    torch.testing.assert_close(picked[1], whole[1][[5, 0]])


def test_points_of_the_ball() -> None:
    sampling = Sampling.of(500, generator(), num_points=4, radius=0.2)
    centre = torch.full((500, 3), 0.5).double()
    offsets = torch.stack(sampling.around(centre), dim=1) - 0.5
    assert offsets.shape == (500, 4, 3)
    radii = offsets.square().mean(-1).sqrt() / 0.2
    assert float(radii.max()) <= 1
    # Uniform in three dimensions: the cube of the radius is uniform in [0, 1].
    assert float(radii.pow(3).mean()) == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(offsets.mean((0, 1)), torch.zeros(3).double(), rtol=0, atol=0.02)
    assert not bool((torch.stack(sampling.around(centre), dim=1) - 0.5 == offsets).any())


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "prior", "mean"])
def test_starts(kind: str) -> None:
    observation = observe(cases.lenet(8), cases.mnist(2, 8))
    drawn = draw_starts(kind, observation, observation.bound_prior(), 50, generator())
    assert drawn.shape == (100, 64)
    assert len(drawn.unique(dim=0)) == (99 if kind == "mean" else 100)
    spread = 12**-0.5 if kind == "uniform" else cases.PRIOR.std
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(drawn.std()) == pytest.approx(spread, rel=0.05)
    if kind == "mean":
        assert bool((drawn[[0, 50]] == cases.PRIOR.mean).all())


def test_uniform_without_a_range_is_gaussian() -> None:
    observation = replace(observe(cases.lenet(8), cases.mnist(2, 8)), input_range=None)
    prior = observation.bound_prior()
    pair = [draw_starts(kind, observation, prior, 2, generator()) for kind in ("uniform", "gaussian")]
    assert torch.equal(*pair)


def test_has_pixels() -> None:
    shapes = {(1, 8, 8): True, (8, 8): True, (64,): False, (1, 1): False, (3, 1, 1): False, (2, 3, 8, 8): False}
    assert {shape: regularisers.has_pixels(shape) for shape in shapes} == shapes
