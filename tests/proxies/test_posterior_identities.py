"""What the posterior's numbers must satisfy whatever the model, some of it by simulation; and the random draws."""

from __future__ import annotations

import math

import cases
import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from riskaudit.priors import IsotropicPrior
from riskaudit.proxies import PROXIES
from riskaudit.sensitivity import posterior_rmse, revealed_fraction
from riskaudit.sensitivity.information import ExactInformation
from riskaudit.sensitivity.linearisation import sample_generator

SPECTRUM = st.lists(st.one_of(st.just(0.0), st.floats(1e-8, 1e4)), min_size=1, max_size=20).map(np.array)
POSITIVE = st.floats(1e-4, 1e2)


@given(SPECTRUM, POSITIVE, POSITIVE)
def test_error_and_revealed_fraction_are_one_number(eigenvalues, sigma: float, tau: float) -> None:
    error, revealed = posterior_rmse(eigenvalues, sigma, tau), revealed_fraction(eigenvalues, sigma, tau)
    assert error**2 == pytest.approx(tau**2 * (1 - revealed), rel=1e-9, abs=1e-13 * tau**2)
    assert 0 <= revealed <= 1
    assert 0 <= error <= tau * (1 + 1e-12)


@given(SPECTRUM, POSITIVE, POSITIVE)
def test_more_noise_never_helps_the_attacker(eigenvalues, sigma: float, tau: float) -> None:
    assert posterior_rmse(eigenvalues, 2 * sigma, tau) >= posterior_rmse(eigenvalues, sigma, tau) * (1 - 1e-12)


@given(SPECTRUM, POSITIVE, st.floats(0.01, 0.99))
def test_noise_for_a_target_is_enough_and_not_more(eigenvalues, tau: float, share: float) -> None:
    outcome = ExactInformation(eigenvalues, tau).noise_for(share * tau)
    if outcome.std == 0:
        assert tau * math.sqrt(np.mean(eigenvalues == 0)) >= share * tau * (1 - 1e-9)
    else:
        assert posterior_rmse(eigenvalues, outcome.std, tau) == pytest.approx(share * tau, rel=1e-6)


def test_tends_to_the_error_without_a_prior() -> None:
    model, batch = cases.mlp((36, 12, 10)), cases.mnist(2, 6)
    expected = [e.value for e in PROXIES["expected_rmse"].score(cases.linearise(model, batch)).estimates]
    gaps = []
    for tau in (1.0, 100.0):
        at = cases.linearise(model, batch, prior=IsotropicPrior(0.5, tau))
        found = [e.value for e in PROXIES["posterior_rmse"].score(at).estimates]
        assert all(value < limit for value, limit in zip(found, expected, strict=True))
        gaps.append(oracles.relative_difference(found, expected))
    assert gaps[1] < 1e-4 * gaps[0] * 1.5
    assert gaps[1] < 1e-6


def linear_attack(J, delta, displacement, sigma: float, tau: float):
    """Error of the minimiser of ||J z - (J x + delta)||^2 / sigma^2 + ||z - mu||^2 / tau^2, by least squares."""
    d = J.shape[1]
    stacked = np.concatenate([J / sigma, np.eye(d) / tau])
    # In z - x: the noise pulls one way, the prior back to its mean.
    right = np.concatenate([delta / sigma, np.repeat(-displacement[None] / tau, len(delta), axis=0)], axis=1)
    return np.linalg.lstsq(stacked, right.T, rcond=None)[0].T


def test_map_rmse_is_the_mean_over_noise_draws() -> None:
    sigma, tau, draws = 0.2, 0.3, 4000
    model, batch = cases.mlp((16, 8, 10)), cases.mnist(1, 4)
    at = cases.linearise(model, batch, f"gaussian:{sigma}")
    J = oracles.jacobian(model, F.cross_entropy, batch.inputs[0], batch.targets[0])
    noise = sigma * np.random.default_rng(0).standard_normal((draws, len(J)))
    errors = linear_attack(J, noise, batch.inputs[0].flatten().numpy() - 0.5, sigma, tau)
    squared = np.mean(errors**2, axis=1)
    predicted = PROXIES["map_rmse"].score(at).estimates[0].value
    assert predicted**2 == pytest.approx(squared.mean(), abs=4 * squared.std() / draws**0.5)
    assert squared.std() / draws**0.5 < 0.02 * squared.mean()


def test_map_i2f_averages_to_map_rmse_over_the_package_s_own_draws() -> None:
    draws = 600
    model, batch = cases.mlp((16, 8, 10)), cases.mnist(1, 4)
    many = batch.select([0] * draws)
    at = cases.linearise(model, many, "gaussian:0.2")
    squared = np.array([e.value for e in PROXIES["map_i2f"].score(at).estimates]) ** 2
    one = PROXIES["map_rmse"].score(cases.linearise(model, batch, "gaussian:0.2")).estimates[0].value
    assert one**2 == pytest.approx(squared.mean(), abs=4 * squared.std() / draws**0.5)


def test_posterior_rmse_is_the_mean_over_the_prior() -> None:
    sigma, tau, draws = 0.1, 0.3, 6000
    model, batch = cases.mlp((16, 8, 10)), cases.mnist(1, 4)
    J = oracles.jacobian(model, F.cross_entropy, batch.inputs[0], batch.targets[0])
    rng = np.random.default_rng(1)
    noise, displacements = sigma * rng.standard_normal((draws, len(J))), tau * rng.standard_normal((draws, 16))
    stacked = np.concatenate([J / sigma, np.eye(16) / tau])
    right = np.concatenate([noise / sigma, -displacements / tau], axis=1)
    squared = np.mean(np.linalg.lstsq(stacked, right.T, rcond=None)[0] ** 2, axis=0)
    at = cases.linearise(model, batch, f"gaussian:{sigma}")
    predicted = PROXIES["posterior_rmse"].score(at).estimates[0].value
    assert predicted**2 == pytest.approx(squared.mean(), abs=4 * squared.std() / draws**0.5)


RANDOM = ("i2f", "map_i2f", "i2f_lower_bound")


def by_batches(groups: list[list[int]], seed: int = 0) -> dict[int, list[float]]:
    model, batch = cases.residual(), cases.mnist(5, 8)
    found: dict[int, list[float]] = {}
    for group in groups:
        at = cases.linearise(model, batch.select(group), seed=seed, indices=group)
        columns = [PROXIES[proxy].score(at).estimates for proxy in RANDOM]
        for place, index in enumerate(group):
            found[index] = [column[place].value for column in columns]
    return dict(sorted(found.items()))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("groups", [[[0], [1], [2], [3], [4]], [[3, 4], [0, 1, 2]], [[4, 2, 0], [3, 1]]], ids=str)
def test_draws_do_not_depend_on_batches_or_their_order(groups: list[list[int]]) -> None:
    whole, parts = by_batches([[0, 1, 2, 3, 4]]), by_batches(groups)
    for index in range(5):
        assert parts[index] == pytest.approx(whole[index], rel=1e-9)


def test_draws_depend_on_seed_and_sample() -> None:
    first, other = by_batches([[0, 1, 2, 3, 4]]), by_batches([[0, 1, 2, 3, 4]], seed=1)
    assert all(first[index][0] != other[index][0] for index in range(5))
    model, batch = cases.residual(), cases.mnist(1, 8).select([0, 0])
    twice = PROXIES["i2f"].score(cases.linearise(model, batch)).estimates
    assert twice[0].value != twice[1].value


def test_streams_of_a_sample_are_apart() -> None:
    draws = {tuple(torch.rand(3, generator=sample_generator(*key)).tolist()) for key in np.ndindex(3, 3, 2)}
    assert len(draws) == 18
