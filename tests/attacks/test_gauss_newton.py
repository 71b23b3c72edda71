"""The Gauss-Newton attack and its engine: exact on linear problems, as foretold by the posterior on real ones."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from contracts.attack import AttackContract, generator, observe, observe_uploads, rmse
from torch import Tensor, nn

from riskaudit.attacks import Attack, GaussNewton, Local, Observation, gauss_newton
from riskaudit.attacks.optimise import curvature, levenberg_marquardt
from riskaudit.attacks.optimise.levenberg_marquardt import MatchingProblem, State, StoppingRule
from riskaudit.attacks.optimise.plain_coordinates import determined
from riskaudit.errors import SettingsError
from riskaudit.linalg.solvers.truncated_cg import truncated_cg
from riskaudit.priors import GaussianPrior, WhitenedOperator, fit_prior
from riskaudit.release import Batch


class TestGaussNewton(AttackContract):
    def attack(self, **changes: Any) -> Attack:
        changes.pop("start", None)
        return GaussNewton(**{"rounds": 1, "smooth_steps": 2, "stages": 2, **changes})


def map_errors(observation: Observation, batch: Batch) -> tuple[Tensor, Tensor]:
    """RMSE that the linearised MAP attacker gets for the noise in the observation, and i2f; dense, [B] each."""
    jacobian = observation.jacobian(batch)
    d = observation.dimension
    noise = observation.release.noise
    assert noise is not None
    prior = observation.bound_prior()
    eye = torch.eye(d, dtype=torch.float64)
    drawn = observation.released - jacobian.mean()
    pulled = jacobian.rmatvec(drawn)
    found, plain = [], []
    for index in range(len(batch)):
        hessian = jacobian.select([index]).hessian().matmat(eye[None])[0] / noise.std**2
        one = prior.select([index])
        inverse = torch.stack([one.inverse_root(one.inverse_root(row[None]))[0] for row in eye])
        away = batch.inputs[index].flatten() - one.mean[0]
        rhs = pulled[index] / noise.std**2 - inverse @ away
        found.append(torch.linalg.solve(hessian + inverse, rhs).norm() / d**0.5)
        plain.append(torch.linalg.solve(hessian, pulled[index] / noise.std**2).norm() / d**0.5)
    return torch.stack(found), torch.stack(plain)


@pytest.mark.parametrize("correlated", [False, True], ids=["isotropic", "correlated"])
def test_error_is_the_one_foretold(correlated: bool) -> None:
    batch = cases.mnist(3, 12)
    observation = observe(cases.lenet(12), batch, "gradient,gaussian:0.003")
    if correlated:
        prior = fit_prior(_samples(cases.mnist(32, 12)), "data")
        assert isinstance(prior, GaussianPrior)
        observation = replace(observation, prior=prior)
    expected, _ = map_errors(observation, batch)
    found = GaussNewton().run(observation, generator())
    assert set(found.status) == {"converged"}
    ratios = rmse(found.inputs, batch.inputs) / expected
    assert bool(((ratios > 0.93) & (ratios < 1.07)).all()), ratios


def test_local_error_is_i2f() -> None:
    batch = cases.mnist(3, 12)
    observation = observe(cases.lenet(12), batch, "gradient,gaussian:1e-5")
    _, expected = map_errors(observation, batch)
    found = Local(start=batch.inputs).run(observation, generator())
    ratios = rmse(found.inputs, batch.inputs) / expected
    assert bool(((ratios > 0.97) & (ratios < 1.03)).all()), ratios


def test_an_undefended_release_is_inverted() -> None:
    batch = cases.mnist(3, 12)
    found = GaussNewton().run(observe(cases.lenet(12), batch), generator())
    assert float(rmse(found.inputs, batch.inputs).max()) < 1e-6


LAPLACE = pytest.param("laplace:1e-5", marks=pytest.mark.slow)


@pytest.mark.parametrize("spec", ["clip:0.5", "prune:0.3", "mask:0.5", "clip:0.5,gaussian:1e-5", LAPLACE])
def test_every_kind_of_release(spec: str) -> None:
    batch = cases.mnist(3, 8)
    found = GaussNewton().run(observe(cases.lenet(8), batch, spec), generator())
    # Clipping hides the length, and pruning's kept entries change on the way: the best start still comes close.
    assert float(rmse(found.inputs, batch.inputs).median()) < 0.1


def test_labels_are_recovered_where_unknown() -> None:
    batch = cases.mnist(3, 8)
    found = GaussNewton().run(observe(cases.lenet(8), batch, known=False), generator())
    assert found.targets.tolist() == batch.targets.tolist()


def test_local_needs_its_start() -> None:
    with pytest.raises(SettingsError, match="start"):
        Local().run(observe(cases.lenet(8), cases.mnist(2, 8)), generator())


@pytest.mark.slow
def test_pure_noise_is_not_explained_by_chance() -> None:
    batch = cases.mnist(3, 8)
    observation = observe(cases.lenet(8), batch, "gradient,gaussian:1e-4")
    noise = torch.randn(observation.released.shape, generator=generator(7), dtype=torch.float64)
    found = GaussNewton(steps=20, rounds=1).run(replace(observation, released=noise), generator())
    assert float(found.objective.min()) > 100 * observation.released.shape[1]


def test_rounds_help_only_samples_whose_residual_is_unexplained() -> None:
    observation = observe(cases.lenet(8), cases.mnist(3, 8), "gradient,gaussian:1e-4")
    alone = GaussNewton(restarts=1).run(observation, generator())
    rounds = GaussNewton().run(observation, generator())
    assert bool((rounds.objective <= alone.objective).all())


def test_noise_continuation_gets_through_unstable_local_training() -> None:
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    images = cases.digits(2)
    batch = Batch(images.inputs.flatten(1), images.targets)
    observation = observe_uploads(model, batch, "local:epochs=3:batch=1:lr=0.5,gaussian:0.001")
    attack = GaussNewton(steps=20, restarts=1, products=40, stages=20)
    alone = replace(attack, stages=0).run(observation, generator())
    found = attack.run(observation, generator())
    entries = observation.released.shape[1]
    assert float(alone.objective) > 100 * entries
    assert found.status == ("converged",)
    assert float(found.objective) < 1.2 * entries
    assert float(rmse(found.inputs, batch.inputs).max()) < 0.01


def test_a_descent_never_raises_the_objective() -> None:
    observation = observe(cases.lenet(8), cases.mnist(3, 8), "gradient,gaussian:1e-3")
    prior = observation.bound_prior()
    problem = MatchingProblem(observation, prior, torch.full((3,), 1e-6, dtype=torch.float64))
    state = problem.start(torch.zeros_like(prior.mean))
    values = [state.value.clone()]
    for _ in range(6):
        state = problem.minimise(state, StoppingRule(1, 20, 0.1, 1e-5))
        values.append(state.value.clone())
    for before, after in itertools.pairwise(values):
        assert bool((after <= before).all())
    again = problem.start(state.point)
    assert torch.allclose(again.value, state.value)


def test_a_step_that_damping_keeps_short_is_no_convergence() -> None:
    # Fewer numbers than pixels, so that of most directions the prior alone knows.
    observation = observe(cases.lenet(8), cases.mnist(1, 8), "share:*bias,gaussian:1e-5")
    prior, sigma, limits = observation.bound_prior(), 1e-5, StoppingRule(60, 100, 0.1, 1e-5)
    problem = MatchingProblem(observation, prior, torch.full((1,), sigma**2, dtype=torch.float64))
    best = problem.minimise(problem.start(torch.zeros_like(prior.mean)), limits)
    operator = WhitenedOperator(observation.at(problem.inputs(best.point)).hessian(), prior)
    values, vectors = torch.linalg.eigh(operator.matmat(torch.eye(64, dtype=torch.float64)[None])[0])
    assert values[-1] > 1e5 * sigma**2 > 1e5 * values[0]
    # Off by a hundredth of an objective along the flattest direction, and along the steepest, which sets the damping.
    away = 0.1 * vectors[:, 0] + 0.1 * sigma / values[-1].sqrt() * vectors[:, -1]
    found = problem.minimise(problem.start(best.point + away), limits)
    assert bool(found.converged)
    assert float(2 * (found.value - best.value)) < 1e-3 * sigma**2


def _samples(batch: Batch) -> Any:
    from riskaudit.inputs import Samples

    return Samples.from_tensors(batch.inputs, batch.targets)


def test_earlier_curvature_shortens_the_search_and_leaves_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = cases.mnist(1, 10)
    observation = observe(cases.lenet(10), batch, "gradient,gaussian:0.0003")
    products = []

    def counted(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        solved = truncated_cg(*arguments)
        products.append(int(solved[2].sum()))
        return solved

    monkeypatch.setattr(levenberg_marquardt, "truncated_cg", counted)
    attack = GaussNewton(restarts=1, forcing=1e-3, products=1000)
    near = attack.run(observation, generator())
    preconditioned, products = sum(products), []
    monkeypatch.setattr(curvature, "MOST_BYTES", 0)
    plain = attack.run(observation, generator())
    assert plain.status == near.status == ("converged",)
    assert torch.allclose(plain.inputs, near.inputs, atol=1e-4)
    assert 2 * preconditioned < sum(products)


def correlated_observation(
    spec: str, count: int = 2, model: torch.nn.Module | None = None
) -> tuple[Observation, Batch]:
    """An undefended release under a prior of which some coordinates hardly vary, as the corners of digits."""
    batch = cases.digits(count)
    torch.manual_seed(0)
    columns = torch.linalg.qr(torch.randn(64, 20, dtype=torch.float64))[0]
    variances = torch.logspace(-1, -3, 20, dtype=torch.float64)
    prior = GaussianPrior(torch.full((64,), 0.3, dtype=torch.float64), columns, variances, 1e-5, (1, 8, 8))
    return replace(observe(cases.lenet(8) if model is None else model, batch, spec), prior=prior), batch


def without_room(monkeypatch: pytest.MonkeyPatch, *, plain: bool) -> list[int]:
    """No matrices are kept, as at large inputs; counts products, with or without plain coordinates."""
    products: list[int] = []

    def counted(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        solved = truncated_cg(*arguments)
        products.append(int(solved[2].sum()))
        return solved

    monkeypatch.setattr(levenberg_marquardt, "truncated_cg", counted)
    monkeypatch.setattr(curvature, "MOST_BYTES", 0)
    if not plain:
        monkeypatch.setattr(gauss_newton, "needs_plain_coordinates", lambda problem: False)
    return products


@pytest.mark.slow
def test_plain_coordinates_end_sooner_and_no_higher(monkeypatch: pytest.MonkeyPatch) -> None:
    observation, batch = correlated_observation("gradient", 1)
    attack, runs = GaussNewton(restarts=1), {}
    for plain in (True, False):
        with monkeypatch.context() as patch:
            products = without_room(patch, plain=plain)
            runs[plain] = attack.run(observation, generator()), sum(products)
    (found, few), (before, many) = runs[True], runs[False]
    assert 2 * few < many
    assert found.status == ("converged",)
    scale = observation.released.square().sum(-1)
    assert bool((found.objective <= before.objective.clamp_min(1e-14 * scale)).all())
    assert float(rmse(found.inputs, batch.inputs).max()) < 1e-5


def test_what_a_release_does_not_determine_is_left_to_the_priors_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    # 10 numbers say less than 64 pixels, and are matched at once.
    observation, _ = correlated_observation("share:*bias", 1, cases.mlp((64, 10)))
    problem = MatchingProblem(observation, observation.bound_prior(), torch.zeros(1, dtype=torch.float64))
    everything = torch.full((1,), torch.inf, dtype=torch.float64)
    limits, start = StoppingRule(60, 100, 0.1, 1e-5), torch.zeros(1, 64, dtype=torch.float64)
    assert bool(problem.minimise(problem.start(start), limits).converged.all())
    assert determined(problem, start, everything, limits)[0] == []
    attack, runs = GaussNewton(restarts=1), {}
    for plain in (True, False):
        with monkeypatch.context() as patch:
            without_room(patch, plain=plain)
            runs[plain] = attack.run(observation, generator())
    assert torch.equal(runs[True].inputs, runs[False].inputs)


def test_samples_are_determined_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    observation, _ = correlated_observation("gradient", 3)
    problem = MatchingProblem(observation, observation.bound_prior(), torch.zeros(3, dtype=torch.float64))
    start, limits = torch.zeros(3, 64, dtype=torch.float64), StoppingRule(60, 100, 0.1, 1e-5)
    # Nothing explains the second one.
    explained = torch.tensor([1e-12, -1.0, 1e-12], dtype=torch.float64) * observation.released.square().sum(-1)
    rows, state = determined(problem, start, explained, limits)
    assert rows == [0, 2]
    part = problem.select(rows)
    assert torch.allclose(part.start(state.point).value, state.value, atol=1e-12)
    other = part.select([0]).start(start[:1])
    joined = State.joined([([2], state.select([1])), ([1], other), ([0], state.select([0]))])
    assert torch.equal(joined.point, torch.stack([state.point[0], other.point[0], state.point[1]]))
    assert joined.converged.tolist() == [True, False, True]
