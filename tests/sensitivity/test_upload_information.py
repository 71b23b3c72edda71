"""Success, predictive intervals and noise needed of uploads, for both attackers, against dense posteriors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import cases
import joint_oracles
import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from correlated_cases import moments, prior_for
from scipy.optimize import brentq
from torch import nn

from riskaudit.jacobian.joint import joint_jacobian_maker
from riskaudit.priors import Prior
from riskaudit.proxies import PROXIES
from riskaudit.release import make_release
from riskaudit.sensitivity import Linearisation, Plan
from riskaudit.sensitivity.success import success_of

SIGMA, TOLERANCES = 0.02, (0.1, 0.2, 0.25, 0.3)
TEXT = "local:epochs=1:batch=2:lr=0.2:momentum=0.5"
SAMPLES, D = 4, 64


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 10)).double().eval()


def prior_named(name: str) -> Prior:
    return cases.PRIOR if name == "isotropic" else prior_for("lenet", name)


def linearise(prior: str, how: Plan | None = None, text: str = TEXT) -> Linearisation:
    release = make_release(network(), F.cross_entropy, f"{text},gaussian:{SIGMA}")
    data = cases.digits(SAMPLES)
    upload = data.in_uploads(release.uploads(SAMPLES))
    jacobian = joint_jacobian_maker(release, upload)(upload)
    return Linearisation(jacobian, [0], prior_named(prior), how or cases.plan(), 0)


@cache
def hessian() -> oracles.Array:
    data = cases.digits(SAMPLES)
    J = joint_oracles.jacobian(joint_oracles.trained(1, 2, 0.2, 0.5), network(), data.inputs, data.targets)
    return J.T @ J


def precision_of(prior: str, sigma: float) -> oracles.Array:
    """Of the whole upload's posterior, [n d, n d]."""
    targets = cases.digits(SAMPLES).targets
    blocks = [
        0.09 * np.eye(D) if prior == "isotropic" else moments(prior_named(prior), int(target))[1] for target in targets
    ]
    precision = hessian() / sigma**2
    for index, block in enumerate(blocks):
        part = slice(index * D, (index + 1) * D)
        precision[part, part] += np.linalg.inv(block)
    return precision


def posterior(prior: str, attacker: str, sample: int, sigma: float) -> oracles.Array:
    """[d, d]: a block of the whole upload's, or with all other samples known."""
    precision = precision_of(prior, sigma)
    part = slice(sample * D, (sample + 1) * D)
    if attacker == "informed":
        return np.linalg.inv(precision[part, part])
    return np.linalg.inv(precision)[part, part]


def of_attacker(at: Linearisation, attacker: str) -> Linearisation:
    return at.informed if attacker == "informed" else at


ATTACKERS = pytest.mark.parametrize("attacker", ["outsider", "informed"])
BOTH_PRIORS = pytest.mark.parametrize("prior", ["isotropic", "class"])


@pytest.mark.sampled(1)
@ATTACKERS
@BOTH_PRIORS
def test_errors_drawn_from_the_posterior_succeed_as_often(prior: str, attacker: str) -> None:
    at, draws = of_attacker(linearise(prior), attacker), 4000
    for sample in (0, 3):
        errors = np.random.default_rng(0).multivariate_normal(
            np.zeros(D), posterior(prior, attacker, sample, SIGMA), size=draws, method="cholesky"
        )
        rmse = np.sqrt(np.mean(errors**2, axis=1))
        rows, predicted = success_of(at, sample, TOLERANCES)
        for tolerance, row in zip(TOLERANCES, rows, strict=True):
            assert (row.tolerance, row.status) == (tolerance, "exact")
            share = np.mean(rmse <= tolerance)
            assert row.probability == pytest.approx(share, abs=4.5 * (max(share * (1 - share), 1e-3) / draws) ** 0.5)
        assert predicted is not None
        assert np.mean(rmse < predicted.low) == pytest.approx(0.05, abs=0.02)
        assert np.mean(rmse > predicted.high) == pytest.approx(0.05, abs=0.02)
        expected = np.sqrt(np.trace(posterior(prior, attacker, sample, SIGMA)) / D)
        assert predicted.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("solver", ["dense", "lanczos"])
@BOTH_PRIORS
def test_errors_are_drawn_from_the_posterior(prior: str, solver: str) -> None:
    """In the posterior's own norm a square is chi-squared with n d degrees of freedom: 16 draws, 5 deviations."""
    at = linearise(prior, cases.plan() if solver == "dense" else cases.plan("lanczos", "quadrature"))
    draws = np.stack([at.posterior_draw(number)[0].numpy() for number in range(16)])
    squares = np.einsum("ki,ij,kj->k", draws, precision_of(prior, SIGMA), draws)
    assert squares.mean() == pytest.approx(SAMPLES * D, abs=5 * (2 * SAMPLES * D / 16) ** 0.5)


@pytest.mark.sampled(1)
@ATTACKERS
@BOTH_PRIORS
def test_noise_needed_is_that_of_the_dense_posterior(prior: str, attacker: str) -> None:
    information = of_attacker(linearise(prior), attacker).information
    assert information is not None
    for sample in (1, 2):
        target = 0.6 * information[sample].tau

        def excess(log_sigma: float, sample: int = sample, target: float = target) -> float:
            return np.sqrt(np.trace(posterior(prior, attacker, sample, np.exp(log_sigma))) / D) - target

        found = information[sample].noise_for(target)
        assert found.status == "exact"
        assert found.std == pytest.approx(np.exp(brentq(excess, np.log(1e-4), np.log(1e2))), rel=1e-5)


@pytest.mark.sampled(1)
@ATTACKERS
@BOTH_PRIORS
def test_brackets_hold_what_is_exact(prior: str, attacker: str) -> None:
    exact = of_attacker(linearise(prior), attacker)
    at = of_attacker(linearise(prior, cases.plan("lanczos", "quadrature", max_matvecs=8, max_probes=4)), attacker)
    assert exact.information is not None
    assert at.information is not None
    for sample in (0, 2):
        rows, interval = success_of(exact, sample, TOLERANCES)
        bounds, wider = success_of(at, sample, TOLERANCES)
        for row, bound in zip(rows, bounds, strict=True):
            assert bound.status == "bracketed"
            assert bound.low - 1e-9 <= row.probability <= bound.high + 1e-9
        assert wider.low <= interval.low * (1 + 1e-9)
        assert wider.high is None or wider.high >= interval.high * (1 - 1e-9)
        target = 0.6 * exact.information[sample].tau
        needed, enough = exact.information[sample].noise_for(target), at.information[sample].noise_for(target)
        # Enough for sure is never less than what is needed.
        assert enough.status == "bracketed"
        assert enough.std >= needed.std * (1 - 1e-9)


def test_informed_attackers_know_no_less() -> None:
    at = linearise("class")
    outsider, informed = (PROXIES[name].score(at).estimates for name in ("posterior_rmse", "informed_posterior_rmse"))
    assert all(less.value >= more.value > 0 for less, more in zip(outsider, informed, strict=True))


@BOTH_PRIORS
def test_ends_of_who_knows_the_others_are_never_milder_than_an_outsiders(prior: str) -> None:
    of_samples = cases.plan("lanczos", "quadrature", max_matvecs=1, max_probes=2)
    how = replace(cases.plan("lanczos", "quadrature", max_matvecs=24, max_probes=32), of_samples=of_samples)
    at = linearise(prior, how)
    told = {
        name: [PROXIES[prefix + name].score(at).estimates for prefix in ("", "informed_")]
        for name in ("revealed_fraction", "posterior_rmse")
    }
    for outsider, informed in zip(*told["revealed_fraction"], strict=True):
        assert outsider.low <= informed.low <= informed.high
        assert informed.value is None or informed.low <= informed.value <= informed.high
    for outsider, informed in zip(*told["posterior_rmse"], strict=True):
        assert informed.low <= informed.high <= outsider.high
        assert informed.value is None or informed.low <= informed.value <= informed.high
    exact = linearise(prior).informed.information
    assert exact is not None
    for own, informed in zip(exact, told["revealed_fraction"][1], strict=True):
        assert informed.low <= own.revealed(SIGMA).value <= informed.high


def test_all_samples_together_have_no_more_dimensions_than_what_is_sent() -> None:
    """98 numbers for 256 coordinates: with next to no noise, that many and no more are pinned down."""
    at = linearise("isotropic", text="mean:4,share:3.*+1.bias").information
    assert at is not None
    assert sum(D * one.revealed(1e-9).value for one in at) <= 98 * (1 + 1e-9)
