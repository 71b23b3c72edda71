"""What brackets say of a release at any noise, against all eigenvalues."""

from __future__ import annotations

import math

import cases
import numpy as np
import pytest
from scipy.linalg import sqrtm

from riskaudit.linalg import Interval
from riskaudit.sensitivity.information import (
    BracketedInformation,
    ExactInformation,
    Information,
    RaisedInformation,
    posterior_rmse,
    revealed_fraction,
)

SIGMAS = (1e-4, 0.01, 0.05, 0.3, 3.0)
TAU = cases.PRIOR.std


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Information, Information]]:
    """Brackets and the truth, sample by sample; the brackets were aimed at noise 0.05."""
    model, batch = cases.lenet(12), cases.mnist(8, 12)
    how = cases.plan("lanczos", "quadrature", max_matvecs=40, failure=1e-4)
    bracketed = cases.linearise(model, batch, "gaussian:0.05", how=how).information
    exact = cases.linearise(model, batch, "gaussian:0.05").information
    return list(zip(bracketed, exact, strict=True))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_intervals_hold_the_truth_at_any_noise(pairs, sigma: float) -> None:
    for bracketed, exact in pairs:
        for found, truth in (
            (bracketed.revealed(sigma), exact.revealed(sigma)),
            (bracketed.error(sigma), exact.error(sigma)),
        ):
            assert truth.low == truth.value == truth.high
            assert found.low * (1 - 1e-9) <= truth.value <= found.high * (1 + 1e-9)
            assert found.low <= found.value <= found.high


def test_intervals_say_something_where_they_were_aimed(pairs) -> None:
    for bracketed, _ in pairs:
        found = bracketed.revealed(0.05)
        assert found.high - found.low < 0.25


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_noise_that_brackets_ask_for_is_enough(pairs, share: float) -> None:
    for bracketed, exact in pairs:
        found, truth = bracketed.noise_for(share * TAU), exact.noise_for(share * TAU)
        assert (found.status, truth.status) == ("bracketed", "exact")
        assert found.std >= truth.std * (1 - 1e-9)
        assert exact.error(found.std).value >= share * TAU * (1 - 1e-9)
        assert exact.error(truth.std).value == pytest.approx(share * TAU, rel=1e-9)


def test_a_target_that_no_noise_reaches(pairs) -> None:
    for one in pairs[0]:
        assert one.noise_for(TAU) == one.noise_for(TAU).model_copy(update={"std": None, "status": "not_applicable"})


def test_exact_information_is_the_formula() -> None:
    values = np.array([0.0, 0.5, 2.0])
    information = ExactInformation(values, TAU)
    for sigma in SIGMAS:
        assert information.revealed(sigma).value == float(revealed_fraction(values, sigma, TAU))
        assert information.error(sigma).value == float(posterior_rmse(values, sigma, TAU))
        eps = sigma**2 / TAU**2
        assert information.revealed(sigma).value == pytest.approx(np.mean(values / (values + eps)), rel=1e-12)


def test_a_block_of_a_joint_posterior_is_read_off_its_own_weights() -> None:
    """Two samples in one upload: w_i = ||(L v_i)[block]||^2, docs/theory.md on correlated priors, block by block."""
    rng, d, sigma = np.random.default_rng(0), 6, 0.4
    J = rng.standard_normal((9, 2 * d))
    C = np.zeros((2 * d, 2 * d))
    for block, std in ((slice(0, d), 0.3), (slice(d, 2 * d), 2.0)):
        factor = rng.standard_normal((d, d))
        C[block, block] = std**2 * (factor @ factor.T / d + 0.1 * np.eye(d))
    covariance = np.linalg.inv(J.T @ J / sigma**2 + np.linalg.inv(C))
    L = np.real(sqrtm(C))
    values, vectors = np.linalg.eigh(L @ J.T @ J @ L)
    for block in (slice(0, d), slice(d, 2 * d)):
        tau = np.sqrt(np.trace(C[block, block]) / d)
        information = ExactInformation(np.maximum(values, 0) / tau**2, tau, np.square(L @ vectors)[block].sum(0))
        assert information.error(sigma).value == pytest.approx(
            np.sqrt(np.trace(covariance[block, block]) / d), rel=1e-9
        )
        revealed = 1 - np.trace(covariance[block, block]) / np.trace(C[block, block])
        assert information.revealed(sigma).value == pytest.approx(revealed, rel=1e-9)


class Traces:
    """Of a matrix of which half its total is revealed, give or take."""

    total = 10.0

    def effective_dimension(self, eps: float) -> Interval:
        return Interval(6.0, 4.0, 8.0)

    def remaining(self, eps: float) -> Interval:
        return Interval(4.0, 2.0, 6.0)


class Known:
    """What an informed attacker is told."""

    def __init__(self, revealed: Interval, error: Interval) -> None:
        self.revealed, self.error = (lambda _: revealed), (lambda _: error)


@pytest.mark.parametrize(("told", "value"), [(0.5, 0.5), (0.7, 0.6), (0.3, 0.4)])
def test_an_outsider_is_not_told_more_than_who_knows_the_others(told: float, value: float) -> None:
    """Values: the informed one's where it is less, but inside the outsider's own interval."""
    known = Known(Interval(told, 0.2, 0.75), Interval((1 - told) ** 0.5, 0.5, 0.9))
    both = BracketedInformation(Traces(), 1.0, informed=known)
    revealed, error = both.revealed(1.0), both.error(1.0)
    assert (revealed.value, revealed.low, revealed.high) == pytest.approx((value, 0.4, 0.75))
    assert error.value == pytest.approx((1 - value) ** 0.5)
    assert (error.low, error.high) == pytest.approx((0.5, 0.6**0.5))


@pytest.mark.parametrize(
    ("told", "revealed", "error"),
    [
        # The outsider's lower end, 0.4, and the upper end of its error, sqrt(0.6), are the informed one's.
        ((0.5, 0.2, 0.75), (0.5, 0.4, 0.75), (0.5, 0.25, 0.6)),
        ((0.3, 0.2, 0.75), (0.4, 0.4, 0.75), (0.6, 0.25, 0.6)),
        # One that is narrower stays as it is.
        ((0.6, 0.5, 0.7), (0.6, 0.5, 0.7), (0.4, 0.3, 0.5)),
        # Two that don't meet, one of which misses: nothing beyond the informed one's own upper end is claimed.
        ((0.25, 0.2, 0.3), (0.3, 0.3, 0.3), (0.7, 0.7, 0.7)),
    ],
)
def test_who_knows_the_others_is_not_told_less_than_an_outsider(
    told: tuple[float, ...], revealed: tuple[float, ...], error: tuple[float, ...]
) -> None:
    value, low, high = told
    left = Interval((1 - value) ** 0.5, (1 - high) ** 0.5, (1 - low) ** 0.5)
    known = Known(Interval(value, low, high), left)
    known.tau = 1.0
    found = RaisedInformation(known, BracketedInformation(Traces(), 1.0, informed=known))
    ends, rmse = found.revealed(1.0), found.error(1.0)
    assert (ends.value, ends.low, ends.high) == pytest.approx(revealed)
    assert (rmse.value**2, rmse.low**2, rmse.high**2) == pytest.approx(error)


class Counted(Information):
    """The error of a single eigenvalue, sqrt(eps / (k + eps)), with the number of times that it was asked for."""

    status = "exact"

    def __init__(self, eigenvalue: float, scale: tuple[float, float], ceiling: float = 1.0) -> None:
        self.tau, self.eigenvalue, self.ceiling, self.asked = 1.0, eigenvalue, ceiling, 0
        self._scale = scale

    def revealed(self, sigma: float) -> Interval:
        raise NotImplementedError

    def error(self, sigma: float) -> Interval:
        self.asked += 1
        error = min(self.ceiling, math.sqrt(sigma**2 / (self.eigenvalue + sigma**2)))
        return Interval(error, error, error)

    @property
    def scale(self) -> tuple[float, float]:
        return self._scale

    @property
    def trace(self) -> None:
        return None


@pytest.mark.parametrize("eigenvalue", [1.0, 1e-4, 1e-9, 1e-20])
@pytest.mark.parametrize("target", [0.01, 0.5, 0.999])
def test_noise_is_found_wherever_it_lies(eigenvalue: float, target: float) -> None:
    information = Counted(eigenvalue, (1e-2, 1.0))
    found = information.noise_for(target)
    assert found.std == pytest.approx(math.sqrt(eigenvalue * target**2 / (1 - target**2)), rel=1e-9)


def test_noise_near_the_typical_scale_takes_few_looks() -> None:
    """Each of them is a good part of a millisecond, for every sample and every limit."""
    information = Counted(1e-2, (1e-2, 1.0))
    information.noise_for(0.6)
    assert information.asked <= 12


def test_noise_that_is_out_of_reach_is_not_claimed() -> None:
    found = Counted(1.0, (1.0, 1.0), ceiling=0.5).noise_for(0.6)
    assert (found.std, found.status) == (None, "not_converged")
