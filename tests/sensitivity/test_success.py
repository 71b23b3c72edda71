"""The probability of success and the predictive interval, by simulation and against each other."""

from __future__ import annotations

import cases
import numpy as np
import oracles
import pytest
import torch.nn.functional as F
from correlated_cases import moments, prior_for

from riskaudit.priors import IsotropicPrior
from riskaudit.proxies import PROXIES
from riskaudit.sensitivity.success import success_of

SIGMA = 0.05
TOLERANCES = (0.02, 0.1, 0.2, 0.25, 0.4)


def covariance(prior) -> oracles.Array:
    batch = cases.digits(2)
    J = oracles.jacobian(cases.lenet(8), F.cross_entropy, batch.inputs[0], batch.targets[0])
    C = 0.09 * np.eye(64) if isinstance(prior, IsotropicPrior) else moments(prior, int(batch.targets[0]))[1]
    return oracles.posterior_covariance(J, SIGMA, C)


def linearised(prior, how=None):
    return cases.linearise(cases.lenet(8), cases.digits(2), f"gaussian:{SIGMA}", prior=prior, how=how)


PRIORS = {"isotropic": lambda: IsotropicPrior(0.5, 0.3), "class": lambda: prior_for("lenet", "class")}


@pytest.mark.parametrize("name", PRIORS)
def test_errors_drawn_from_the_posterior_succeed_as_often(name: str) -> None:
    prior, draws = PRIORS[name](), 20_000
    errors = np.random.default_rng(0).multivariate_normal(
        np.zeros(64), covariance(prior), size=draws, method="cholesky"
    )
    rmse = np.sqrt(np.mean(errors**2, axis=1))
    rows, predicted = success_of(linearised(prior), 0, TOLERANCES)
    for tolerance, row in zip(TOLERANCES, rows, strict=True):
        assert (row.tolerance, row.status, row.low, row.high) == (tolerance, "exact", None, None)
        share = np.mean(rmse <= tolerance)
        assert row.probability == pytest.approx(share, abs=4.5 * (max(share * (1 - share), 1e-4) / draws) ** 0.5)
    assert predicted.status == "exact"
    assert np.mean(rmse < predicted.low) == pytest.approx(0.05, abs=0.01)
    assert np.mean(rmse > predicted.high) == pytest.approx(0.05, abs=0.01)
    assert predicted.low < predicted.value < predicted.high
    assert predicted.value == PROXIES["posterior_rmse"].score(linearised(prior)).estimates[0].value


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("max_matvecs", [1, 8, 64])
def test_bounds_hold_what_is_exact(name: str, max_matvecs: int) -> None:
    exact = linearised(PRIORS[name]())
    at = linearised(PRIORS[name](), cases.plan("lanczos", "quadrature", max_matvecs=max_matvecs))
    for index in range(2):
        rows, interval = success_of(exact, index, TOLERANCES)
        bounds, wider = success_of(at, index, TOLERANCES)
        for row, bound in zip(rows, bounds, strict=True):
            assert (bound.probability, bound.status) == (None, "bracketed")
            assert 0 <= bound.low <= row.probability + 1e-9
            assert row.probability <= bound.high + 1e-9 <= 1 + 1e-9
        assert wider.low <= interval.low
        assert wider.high is None or wider.high >= interval.high
    if max_matvecs == 64:
        # They say something: coming so near is all but excluded.
        assert bounds[0].high < 0.1


def test_without_traces_nothing_is_said() -> None:
    rows, predicted = success_of(linearised(PRIORS["class"](), cases.plan("power", "cg")), 0, TOLERANCES)
    assert {(row.probability, row.low, row.high, row.status) for row in rows} == {(None, None, None, "not_applicable")}
    assert predicted is None


def test_more_tolerance_is_more_success() -> None:
    rows, _ = success_of(linearised(PRIORS["class"]()), 1, tuple(np.linspace(0.01, 0.6, 25)))
    found = [row.probability for row in rows]
    assert found == sorted(found)
    assert found[0] < 1e-6
    assert found[-1] > 0.999
