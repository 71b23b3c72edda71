"""The approximate Bayes-optimal adversary against posteriors in closed form."""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
import torch
from contracts.attack import generator, observe, rmse
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from riskaudit.attacks import AttackNotApplicable, BayesOptimal, Observation
from riskaudit.attacks.bayes import LikelihoodKind
from riskaudit.attacks.optimise.sampling import Sampling
from riskaudit.errors import SettingsError
from riskaudit.jacobian import jacobian_maker
from riskaudit.release import Batch, PerSampleRelease, Release

CLASSES, SIZE = 3, 6


def linear_release(spec: str) -> tuple[Release, Batch]:
    """A model whose gradient is the input itself, CLASSES times: loss = sum of W x + b."""
    model = nn.Linear(SIZE, CLASSES).double()
    batch = Batch(torch.rand(2, SIZE, generator=generator(7), dtype=torch.float64), torch.zeros(2, dtype=torch.int64))
    return PerSampleRelease(model, lambda outputs, targets: outputs.sum(), spec), batch


def observed(spec: str) -> Observation:
    release, batch = linear_release(spec)
    released = release.observe(batch, generator(1)).detach()
    return Observation(released, jacobian_maker(release, batch), (SIZE,), cases.PRIOR, batch.targets, (0.0, 1.0))


def copies(observation: Observation) -> Tensor:
    """The CLASSES noisy copies of each coordinate, [B, CLASSES, d]."""
    return observation.released[:, : CLASSES * SIZE].reshape(-1, CLASSES, SIZE)


@pytest.mark.parametrize("beta", [1.0, pytest.param(4.0, marks=pytest.mark.slow)])
def test_gaussian_likelihood_and_prior(beta: float) -> None:
    observation, sigma, prior = observed("gaussian:0.2"), 0.2, cases.PRIOR
    attack = BayesOptimal(steps=1300, prior="gaussian", beta=beta)
    found = attack.run(observation, generator())
    precision = CLASSES / sigma**2 + beta / prior.std**2
    expected = (copies(observation).sum(1) / sigma**2 + beta * prior.mean / prior.std**2) / precision
    torch.testing.assert_close(found.inputs, expected, rtol=0, atol=1e-5)
    assert found.status == ("converged", "converged")


@pytest.mark.slow
def test_laplace_likelihood_with_gaussian_prior() -> None:
    observation, scale, prior = observed("laplace:0.2"), 0.2, cases.PRIOR
    found = BayesOptimal(steps=1500, prior="gaussian").run(observation, generator())
    for sample, rows in enumerate(copies(observation).numpy()):
        for place in range(SIZE):
            values = rows[:, place]
            expected = minimize_scalar(
                lambda x, values=values: abs(values - x).sum() / scale + (x - prior.mean) ** 2 / (2 * prior.std**2),
                bounds=(-1, 2), method="bounded", options={"xatol": 1e-9},
            ).x  # fmt: skip
            assert float(found.inputs[sample, place]) == pytest.approx(expected, abs=2e-3)


@pytest.mark.slow
def test_a_wrong_law_has_the_standard_deviation_of_the_right_one() -> None:
    observation, std, prior = observed("laplace:0.2"), 0.2 * 2**0.5, cases.PRIOR
    found = BayesOptimal(steps=1200, prior="gaussian", likelihood="gaussian").run(observation, generator())
    precision = CLASSES / std**2 + 1 / prior.std**2
    expected = (copies(observation).sum(1) / std**2 + prior.mean / prior.std**2) / precision
    torch.testing.assert_close(found.inputs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("spec", "law"), [("gaussian:0.2", "gaussian"), ("laplace:0.2", "laplace")])
def test_the_right_law_by_its_name_is_the_releases_own(spec: str, law: LikelihoodKind) -> None:
    named = BayesOptimal(steps=20, likelihood=law).run(observed(spec), generator())
    own = BayesOptimal(steps=20).run(observed(spec), generator())
    torch.testing.assert_close(named.inputs, own.inputs, rtol=0, atol=1e-12)
    torch.testing.assert_close(named.objective, own.objective)


@pytest.mark.slow
def test_gaussian_likelihood_with_laplace_prior() -> None:
    observation, sigma, prior = observed("gaussian:0.2"), 0.2, cases.PRIOR
    found = BayesOptimal(steps=1500, prior="laplace").run(observation, generator())
    # The mean of the copies, drawn towards the prior's mean by the ratio of slope and precision.
    away = copies(observation).mean(1) - prior.mean
    threshold = 2**0.5 / prior.std * sigma**2 / CLASSES
    expected = prior.mean + away.sign() * (away.abs() - threshold).clamp_min(0)
    torch.testing.assert_close(found.inputs, expected, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_laplace_prior_knows_of_no_range() -> None:
    observation = observed("gaussian:0.01")
    inside = BayesOptimal(steps=600, prior="laplace").run(replace(observation, input_range=(0.4, 0.6)), generator())
    free = BayesOptimal(steps=600, prior="laplace").run(observation, generator())
    torch.testing.assert_close(inside.inputs, free.inputs, rtol=0, atol=0)


def test_uniform_prior_is_the_clipped_maximum_likelihood() -> None:
    observation = observed("gaussian:0.3")
    found = BayesOptimal(steps=700, prior="range").run(observation, generator())
    torch.testing.assert_close(found.inputs, copies(observation).mean(1).clamp(0, 1), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_smooth_image_is_found_better_by_total_variation() -> None:
    batch = cases.mnist(2, 16)
    observation = observe(cases.lenet(16), batch, "gaussian:0.01")
    errors = {
        kind: rmse(BayesOptimal(steps=600, prior=kind).run(observation, generator(1)).inputs, batch.inputs).mean()
        for kind in ("tv", "range")
    }
    assert errors["tv"] < errors["range"]


def test_without_noise_a_reference_stands_in() -> None:
    batch = cases.mnist(2, 8)
    found = BayesOptimal(steps=300, prior="gaussian").run(observe(cases.lenet(8), batch), generator(1))
    assert float(rmse(found.inputs, batch.inputs).max()) < 0.02


def test_a_range_has_to_be_known() -> None:
    with pytest.raises(AttackNotApplicable, match="range"):
        BayesOptimal(prior="range").run(replace(observed("gaussian:0.1"), input_range=None), generator())


@pytest.mark.parametrize(
    "changes",
    [{"num_points": 0}, {"beta": 0.0}, {"first_likelihood": 0.0}, {"delta": -1.0}, {"last_rate": 0.0}, {"tv_share": 2}],
)
def test_settings_out_of_range(changes: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="expected"):
        BayesOptimal(**changes)


# Algorithm 1 by hand


SHAPE = (1, 2, 3)


def negative_log_prior(kind: str, x: Tensor, beta: float, tv_share: float) -> Tensor:
    """Of one input [d]."""
    if kind == "gaussian":
        return beta * ((x - cases.PRIOR.mean) ** 2).sum() / (2 * cases.PRIOR.std**2)
    image = x.reshape(SHAPE)
    variation = (image[:, 1:] - image[:, :-1]).abs().sum() + (image[..., 1:] - image[..., :-1]).abs().sum()
    if kind == "tv":
        return beta * variation / 0.1
    outside = ((x - x.clamp(0, 1)) ** 2).sum().sqrt() if bool(((x < 0) | (x > 1)).any()) else 0 * x.sum()
    return beta * (tv_share * variation + (1 - tv_share) * outside) / 0.1


def by_hand(attack: BayesOptimal, released: Tensor, std: float, seed: int) -> Tensor:
    """Algorithm 1 for one sample whose release is its input, CLASSES times, and constants; normal noise."""
    random = generator(seed)
    own = None
    if attack.delta > 0 or attack.langevin > 0:
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=random)))
    start = torch.randn(1, SIZE, generator=random, dtype=torch.float64)[0]
    boxed = attack.prior in ("tv", "range")
    x = cases.PRIOR.mean + cases.PRIOR.std * start
    x = torch.nn.Parameter(x.clamp(0, 1) if boxed else x)
    adam = torch.optim.Adam([x], lr=1.0)
    best, least = x.detach().clone(), float("inf")
    for step in range(attack.steps + 1):
        first = min(attack.first_likelihood * std**2, 1.0)
        factor = first ** (1 - min(1.0, 2 * step / attack.steps))
        gradient, value = torch.zeros(SIZE).double(), 0.0
        points = [x.detach()]
        if attack.delta > 0:
            direction = torch.randn(attack.num_points, SIZE, generator=own, dtype=torch.float64)
            radius = torch.rand(attack.num_points, 1, generator=own, dtype=torch.float64) ** (1 / SIZE)
            unit = direction / (direction**2).sum(1, keepdim=True).sqrt()
            points = [x.detach() + attack.delta * SIZE**0.5 * r * u for r, u in zip(radius, unit, strict=True)]
        for point in points:
            z = point.clone().requires_grad_()
            mean = torch.cat([*[z] * CLASSES, torch.ones(CLASSES).double()])
            likelihood = ((released - mean) ** 2).sum() / (2 * std**2)
            prior = negative_log_prior(attack.prior, z, attack.beta, attack.tv_share)
            (slope,) = torch.autograd.grad(factor * likelihood + prior, z)
            gradient += slope / len(points)
            value += float((likelihood + prior).detach()) / len(points)
        if attack.langevin > 0:
            gradient += attack.langevin * torch.randn(1, SIZE, generator=own, dtype=torch.float64)[0]
        if attack.delta > 0 or value < least:
            best, least = x.detach().clone(), value
        adam.param_groups[0]["lr"] = attack.rate * cases.PRIOR.std * attack.last_rate ** (step / attack.steps)
        x.grad = gradient
        adam.step()
        if boxed:
            x.data.clamp_(0, 1)
    return best


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"prior": "tv"}, id="annealed likelihood in a box"),
        pytest.param({"prior": "gaussian", "delta": 0.2, "beta": 2.0}, id="one point of a ball"),
        pytest.param({"prior": "tv-range", "delta": 0.1, "num_points": 3, "tv_share": 0.4}, id="three points"),
        pytest.param({"prior": "tv-range", "first_likelihood": 1e9, "last_rate": 0.5}, id="range without annealing"),
        pytest.param({"prior": "gaussian", "langevin": 5.0, "first_likelihood": 0.1}, id="Langevin"),
    ],
)
def test_algorithm_one(changes: dict[str, object]) -> None:
    attack, std = BayesOptimal(steps=30, **changes), 0.02
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, CLASSES)).double()
    inputs = torch.rand(1, *SHAPE, generator=generator(7), dtype=torch.float64)
    batch = Batch(inputs, torch.zeros(1, dtype=torch.int64))
    release = PerSampleRelease(model, lambda outputs, targets: outputs.sum(), f"gaussian:{std}")
    released = release.observe(batch, generator(1)).detach()
    observation = Observation(released, jacobian_maker(release, batch), SHAPE, cases.PRIOR, batch.targets, (0.0, 1.0))
    found = attack.run(observation, generator(3))
    torch.testing.assert_close(found.inputs[0].flatten(), by_hand(attack, released[0], std, 3), rtol=0, atol=1e-9)


def test_points_are_those_of_a_row_in_any_batch() -> None:
    rows = Sampling.of(3, generator(), num_points=2, radius=0.1, noise=1.0)
    alone = Sampling.of(3, generator(), num_points=2, radius=0.1, noise=1.0).select([2])
    points = torch.zeros(3, 4).double()
    for _ in range(2):
        for whole, part in zip(rows.around(points), alone.around(points[2:]), strict=True):
            assert torch.equal(whole[2:], part)
        assert torch.equal(rows.disturbed(points)[2:], alone.disturbed(points[2:]))
