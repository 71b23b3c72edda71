"""The Gauss-Newton attack and its engine: exact on linear problems, as foretold by the posterior on real ones."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from contracts.attack import AttackContract, generator, observe, rmse
from torch import Tensor

from riskaudit.attacks import Attack, GaussNewton, Local, Observation
from riskaudit.attacks.optimise import curvature, levenberg_marquardt
from riskaudit.attacks.optimise.levenberg_marquardt import MatchingProblem, StoppingRule
from riskaudit.errors import SettingsError
from riskaudit.linalg.solvers.truncated_cg import truncated_cg
from riskaudit.priors import GaussianPrior, fit_prior
from riskaudit.release import Batch


class TestGaussNewton(AttackContract):
    def attack(self, **changes: Any) -> Attack:
        changes.pop("start", None)
        return GaussNewton(**{"rounds": 1, **changes})


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
