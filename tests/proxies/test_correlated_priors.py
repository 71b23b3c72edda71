"""The posterior under correlated priors: against dense float64 by plain inverses, and what must hold of any prior."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import cases
import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from correlated_cases import MODELS, moments, prior_for

from riskaudit.jacobian import jacobian_maker
from riskaudit.priors import GaussianPrior, IsotropicPrior
from riskaudit.proxies import PROXIES, proxies_for
from riskaudit.release import PerSampleRelease
from riskaudit.results import Estimate
from riskaudit.sensitivity import Clock, Linearisation
from riskaudit.sensitivity.information import ExactInformation
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator

SIGMA = 0.05
WITH_PRIOR = ("posterior_rmse", "revealed_fraction", "map_rmse", "map_i2f")
KINDS = ("data", "class", "few-components")


COUNT = 3


@lru_cache
def jacobians(model: str, release: str) -> list[oracles.Array]:
    """Of every sample, dense, whatever the prior."""
    network, batch = MODELS[model][0](), MODELS[model][1](COUNT)
    changes = (oracles.clipped(0.75),) if release.startswith("clip") else ()
    pairs = zip(batch.inputs, batch.targets, strict=True)
    return [oracles.jacobian(network, F.cross_entropy, x, target, changes) for x, target in pairs]


@lru_cache
def truths(model: str, kind: str, release: str = f"gaussian:{SIGMA}") -> list[dict[str, float]]:
    network, batch, prior = MODELS[model][0](), MODELS[model][1](COUNT), prior_for(model, kind)
    at = cases.linearise(network, batch, release)
    rows = []
    for index, (x, target, J) in enumerate(zip(batch.inputs, batch.targets, jacobians(model, release), strict=True)):
        delta = at.release.sample_noise(sample_generator(0, index, NOISE_STREAM)).numpy()
        mean, C = moments(prior, int(target))
        rows.append(oracles.correlated_posterior(J, delta, x.flatten().numpy() - mean, at.sigma, C))
    return rows


def scores(model: str, kind: str, release: str = f"gaussian:{SIGMA}", count: int = COUNT, how=None):
    network, batch = MODELS[model][0](), MODELS[model][1](count)
    at = cases.linearise(network, batch, release, prior=prior_for(model, kind), how=how)
    return at, {name: proxy.score(at).estimates for name, proxy in PROXIES.items()}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("release", ["gaussian:0.05", "gaussian:0.001", "clip:0.75,gaussian:0.01"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_dense_is_the_theory(model: str, kind: str, release: str) -> None:
    _, found = scores(model, kind, release)
    for index, truth in enumerate(truths(model, kind, release)):
        for name, expected in truth.items():
            assert found[name][index].status == "exact"
            assert found[name][index].value == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("how", [cases.plan(), cases.plan("lanczos", "cg", max_matvecs=30)], ids=["dense", "lanczos"])
def test_what_has_no_prior_in_it_does_not_change(how) -> None:
    _, correlated = scores("lenet", "class", how=how)
    at = cases.linearise(MODELS["lenet"][0](), MODELS["lenet"][1](3), f"gaussian:{SIGMA}", how=how)
    for name in set(proxies_for(joint=False)) - set(WITH_PRIOR) - {"expected_rmse"}:
        pairs = list(zip(correlated[name], PROXIES[name].score(at).estimates, strict=True))
        if how.solver == "dense":
            assert all(one == other for one, other in pairs), name
        # The iteration that l_1 is read off goes further where it is a probe as well.
        for one, other in pairs:
            (low, high), (other_low, other_high) = (each.ends for each in (one, other))
            assert max(low or 0.0, other_low or 0.0) <= min(high or math.inf, other_high or math.inf) * (1 + 1e-9), name
    if how.solver == "dense":
        assert correlated["expected_rmse"] == PROXIES["expected_rmse"].score(at).estimates


@pytest.mark.sampled(4)
@pytest.mark.parametrize("max_matvecs", [1, 4, 16, 64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_brackets_hold_the_truth(model: str, kind: str, max_matvecs: int) -> None:
    how = cases.plan("lanczos", "quadrature", max_matvecs=max_matvecs, failure=1e-4)
    at, found = scores(model, kind, how=how)
    for index, truth in enumerate(truths(model, kind)):
        for name, expected in truth.items():
            row = found[name][index]
            assert row.status in ("bracketed", "not_converged"), name
            assert row.low * (1 - 1e-9) <= expected, (name, index)
            assert row.high is None or expected <= row.high * (1 + 1e-9), (name, index)
            assert row.value is None or row.low <= row.value <= row.high
        assert found["posterior_rmse"][index].high <= float(at.prior.std[index]) * (1 + 1e-12)
        if max_matvecs == 64:
            assert found["map_i2f"][index].high <= 1.1 * found["map_i2f"][index].low
            assert found["revealed_fraction"][index].high <= found["revealed_fraction"][index].low + 0.35
    assert at.matvecs > 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("solver", ["lanczos", "power"])
@pytest.mark.parametrize("inverse", ["cg", "neumann"])
def test_iterative_inverses_agree_and_their_intervals_hold(solver: str, inverse: str) -> None:
    how = cases.plan(solver, inverse, tolerance=1e-7, max_matvecs=3000)
    _, found = scores("colour-mlp", "data", how=how)
    for index, truth in enumerate(truths("colour-mlp", "data")):
        row = found["map_i2f"][index]
        assert row.low <= truth["map_i2f"] * (1 + 1e-12)
        assert truth["map_i2f"] <= row.high * (1 + 1e-12)
        if inverse == "cg":
            assert row.status == "converged"
            assert row.value == pytest.approx(truth["map_i2f"], rel=1e-6)
    if solver == "power":
        for name in ("posterior_rmse", "revealed_fraction", "map_rmse"):
            assert found[name] == (Estimate(value=None, status="not_applicable"),) * 3


def test_a_dense_spectrum_with_an_iterative_inverse() -> None:
    _, found = scores("lenet", "data", how=cases.plan("dense", "cg", max_matvecs=2000))
    for index, truth in enumerate(truths("lenet", "data")):
        assert found["posterior_rmse"][index].value == pytest.approx(truth["posterior_rmse"], rel=1e-6)
        assert found["map_i2f"][index].value == pytest.approx(truth["map_i2f"], rel=1e-5)


def spherical(std: float, dimension: int = 64) -> GaussianPrior:
    """IsotropicPrior(0.5, std) as a Gaussian without components."""
    nothing = torch.zeros(dimension, 0, dtype=torch.float64)
    mean = torch.full((dimension,), 0.5, dtype=torch.float64)
    return GaussianPrior(mean, nothing, torch.zeros(0, dtype=torch.float64), std * std, (1, 8, 8))


def test_no_components_is_the_isotropic_prior() -> None:
    model, batch = cases.lenet(8), cases.mnist(3, 8)
    one = cases.linearise(model, batch, prior=IsotropicPrior(0.5, 0.3))
    other = cases.linearise(model, batch, prior=spherical(0.3))
    for name, proxy in PROXIES.items():
        expected, actual = ([row.value for row in proxy.score(each).estimates] for each in (one, other))
        # Those of texts have no value here.
        for value, reference in zip(actual, expected, strict=True):
            assert value == (None if reference is None else pytest.approx(reference, rel=1e-9)), name
    for left, right in zip(one.information, other.information, strict=True):
        for sigma in (1e-4, 0.01, 1.0, 100.0):
            assert right.revealed(sigma).value == pytest.approx(left.revealed(sigma).value, rel=1e-8)
            assert right.error(sigma).value == pytest.approx(left.error(sigma).value, rel=1e-8)
        assert right.noise_for(0.1).std == pytest.approx(left.noise_for(0.1).std, rel=1e-7)


def test_no_components_is_the_isotropic_prior_by_brackets_too() -> None:
    model, batch = cases.lenet(8), cases.mnist(3, 8)
    exact = cases.linearise(model, batch, prior=IsotropicPrior(0.5, 0.3))
    how = cases.plan("lanczos", "quadrature", max_matvecs=64)
    at = cases.linearise(model, batch, prior=spherical(0.3), how=how)
    for name in WITH_PRIOR:
        for truth, row in zip(PROXIES[name].score(exact).estimates, PROXIES[name].score(at).estimates, strict=True):
            assert row.low * (1 - 1e-9) <= truth.value <= row.high * (1 + 1e-9)


@pytest.mark.parametrize("solver", ["dense", "lanczos"])
def test_more_noise_never_helps_and_the_noise_asked_for_is_enough(solver: str) -> None:
    how = cases.plan() if solver == "dense" else cases.plan("lanczos", "quadrature", max_matvecs=64)
    at, _ = scores("lenet", "class", how=how)
    batch = MODELS["lenet"][1](COUNT)
    for index, information in enumerate(at.information):
        errors = [information.error(sigma) for sigma in np.geomspace(1e-4, 1e4, 40)]
        assert all(later.low >= earlier.low * (1 - 1e-9) for earlier, later in pairwise(errors))
        assert information.tau == pytest.approx(float(at.prior.std[index]), rel=1e-12)
        target = 0.4 * information.tau
        found = information.noise_for(target)
        J = jacobians("lenet", f"gaussian:{SIGMA}")[index]
        _, C = moments(prior_for("lenet", "class"), int(batch.targets[index]))
        reached = math.sqrt(np.trace(oracles.posterior_covariance(J, found.std, C)) / 64)
        if solver == "dense":
            assert reached == pytest.approx(target, rel=1e-6)
        else:
            assert reached >= target * (1 - 1e-9)
        assert information.noise_for(1.01 * information.tau).status == "not_applicable"


def test_posterior_rmse_is_the_mean_of_map_rmse_over_the_prior() -> None:
    """J stays as it is, x is drawn from the prior: as for a linear model."""
    draws = 600
    prior = prior_for("lenet", "data")
    model, batch = cases.lenet(8), cases.mnist(1, 8)
    at = cases.linearise(model, batch, f"gaussian:{SIGMA}", prior=prior)
    found = at.posterior_spectrum
    many = found.prior.select([0] * draws)
    std = float(at.prior.std[0])
    white = torch.randn(draws, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squared = []
    for displacement in std * many.root(white):
        at.displacement = displacement[None]
        squared.append(PROXIES["map_rmse"].score(at).estimates[0].value ** 2)
    expected = PROXIES["posterior_rmse"].score(at).estimates[0].value ** 2
    assert np.mean(squared) == pytest.approx(expected, abs=4 * np.std(squared) / draws**0.5)
    assert np.std(squared) / draws**0.5 < 0.05 * expected


def test_time_that_is_up_leaves_honest_intervals() -> None:
    network, batch = MODELS["lenet"][0](), MODELS["lenet"][1](3)
    jacobian = jacobian_maker(PerSampleRelease(network, F.cross_entropy, f"gaussian:{SIGMA}"), batch)(batch)
    how = cases.plan("lanczos", "quadrature")
    at = Linearisation(jacobian, [0, 1, 2], prior_for("lenet", "class"), how, 0, Clock(0.0))
    found = {name: PROXIES[name].score(at).estimates for name in WITH_PRIOR}
    assert at.matvecs == 0
    for index, truth in enumerate(truths("lenet", "class")):
        for name, expected in truth.items():
            row = found[name][index]
            assert row.value is None
            assert (row.low or 0.0) <= expected
            assert row.high is None or expected <= row.high
    assert {(row.low, row.status) for row in found["revealed_fraction"]} == {(0.0, "not_converged")}


@pytest.mark.parametrize("how", [cases.plan(), cases.plan("lanczos", "quadrature", max_matvecs=3)], ids=["dense", "lz"])
@pytest.mark.parametrize("release", ["gaussian:1e-300", "gaussian:1e-8", "gaussian:1e8", "gaussian:1e300"])
def test_every_value_is_finite_or_absent(how, release: str) -> None:
    at, found = scores("lenet", "class", release, count=2, how=how)
    for name, rows in found.items():
        for row in rows:
            numbers = [number for number in (row.value, row.low, row.high) if number is not None]
            assert np.isfinite(numbers).all(), name
    for information in at.information:
        assert 0 <= information.revealed(at.sigma).low <= information.revealed(at.sigma).high <= 1


def test_samples_do_not_depend_on_their_batch() -> None:
    network, batch, prior = MODELS["lenet"][0](), MODELS["lenet"][1](4), prior_for("lenet", "class")
    how = cases.plan("lanczos", "quadrature", max_matvecs=16)
    whole = cases.linearise(network, batch, prior=prior, how=how)
    part = cases.linearise(network, batch.select([2, 0]), prior=prior, how=how, indices=[2, 0])
    for name in WITH_PRIOR:
        rows, few = PROXIES[name].score(whole).estimates, PROXIES[name].score(part).estimates
        for row, other in ((rows[2], few[0]), (rows[0], few[1])):
            assert (other.value is None) == (row.value is None)
            assert other.ends == pytest.approx(row.ends, rel=1e-6)
            if row.value is not None:
                assert other.value == pytest.approx(row.value, rel=1e-6)


def test_float32_uses_float64_where_all_eigenvalues_are_known() -> None:
    network, batch = MODELS["lenet"][0]().float(), MODELS["lenet"][1](2)
    single = type(batch)(batch.inputs.float(), batch.targets)
    at = cases.linearise(network, single, f"gaussian:{SIGMA}", prior=prior_for("lenet", "data"))
    for index, truth in enumerate(truths("lenet", "data")[:2]):
        for name in ("posterior_rmse", "revealed_fraction", "map_rmse"):
            assert PROXIES[name].score(at).estimates[index].value == pytest.approx(truth[name], rel=1e-3)


def test_correlated_information_is_the_formula() -> None:
    values, weights = np.array([0.0, 0.5, 2.0]), np.array([0.3, 1.0, 0.2])
    tau = math.sqrt(weights.mean())
    information = ExactInformation(values / tau**2, tau, weights / tau**2)
    for sigma in (1e-3, 0.5, 10.0):
        left = np.sum(weights * sigma**2 / (values + sigma**2))
        assert information.error(sigma).value == pytest.approx(math.sqrt(left / 3), rel=1e-12)
        assert information.revealed(sigma).value == pytest.approx(1 - left / 1.5, rel=1e-9, abs=1e-12)
