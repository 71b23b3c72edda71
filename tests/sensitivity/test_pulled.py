"""Intervals from random pulls hold the numbers that dense algebra gives, and are no wider than they have to be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from riskaudit.priors import BoundPrior, IsotropicPrior
from riskaudit.sensitivity.pulled import pulled_information

TAU, DIMENSION, ENTRIES = 0.3, 60, 90


def jacobians(decay: float, count: int = 3) -> Tensor:
    """J of every sample [n, P, d], with singular values that fall geometrically."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(count, ENTRIES, DIMENSION, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(count, DIMENSION, DIMENSION, generator=generator, dtype=torch.float64))[0]
    return left * decay ** torch.arange(DIMENSION) @ right.mT


def correlated(count: int) -> BoundPrior:
    """A prior whose covariance has eigenvalues between 0.01 and 1, in a basis of its own."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(-2, 0, DIMENSION, dtype=torch.float64) * TAU**2
    root = basis * values.sqrt() @ basis.mT
    ones = torch.ones(count, dtype=torch.float64)
    return BoundPrior(
        mean=torch.zeros(count, DIMENSION, dtype=torch.float64),
        root=lambda vector: vector @ root,
        inverse_root=lambda vector: vector @ torch.linalg.inv(root),
        variance=ones * values.mean(),
        largest=ones * values.max(),
        select=lambda indices: correlated(len(indices)),
    )


def revealed(jacobian: Tensor, covariance: Tensor, sigma: float) -> float:
    """1 - tr of the posterior covariance over that of the prior's, from its definition."""
    posterior = torch.linalg.inv(jacobian.mT @ jacobian / sigma**2 + torch.linalg.inv(covariance))
    return 1 - float(posterior.trace() / covariance.trace())


@pytest.mark.sampled(8)
@pytest.mark.parametrize("decay", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["isotropic", "correlated"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_intervals_hold_and_their_upper_ends_are_of_use(decay, kind, count) -> None:
    J = jacobians(decay)
    prior = correlated(len(J))
    if kind == "isotropic":
        like = torch.zeros(len(J), DIMENSION, dtype=torch.float64)
        prior = IsotropicPrior(0.0, TAU).bind(torch.zeros(len(J), dtype=torch.int64), like)
    identity = torch.eye(DIMENSION, dtype=torch.float64)
    root = prior.root(identity[None].expand(len(J), -1, -1)[0])
    covariance = root @ root if kind == "correlated" else TAU**2 * identity
    missed, widths = 0, []
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        pulled = J.mT @ torch.randn(ENTRIES, count, generator=generator, dtype=torch.float64)
        for information, each in zip(pulled_information(pulled, None, prior, 0.01), J, strict=True):
            for sigma in (0.01, 0.1, 1.0):
                exact, interval = revealed(each, covariance, sigma), information.revealed(sigma)
                missed += not interval.low <= exact <= interval.high
                error = information.error(sigma)
                missed += not error.low <= information.tau * math.sqrt(1 - exact) <= error.high
                widths.append(interval.high / exact)
    assert missed == 0
    if count == 10:
        assert np.median(widths) < 8
        assert max(widths) < 40


@pytest.mark.parametrize("count", [2, 3, 5])
def test_pulls_that_measure_in_turn_miss_no_more_often_than_they_may(count) -> None:
    """With the smallest of several measurements the failure is shared among them."""
    like = torch.zeros(1, DIMENSION, dtype=torch.float64)
    prior = IsotropicPrior(0.0, TAU).bind(torch.zeros(1, dtype=torch.int64), like)
    exact_of = {decay: revealed(jacobians(decay, 1)[0], TAU**2 * torch.eye(DIMENSION), 0.3) for decay in (0.3, 0.8)}
    generator, missed = torch.Generator().manual_seed(5), 0
    for decay, exact in exact_of.items():
        (J,) = jacobians(decay, 1)
        for _ in range(100):
            pulled = (J.mT @ torch.randn(ENTRIES, count, generator=generator, dtype=torch.float64))[None]
            (information,) = pulled_information(pulled, None, prior, 0.5)
            missed += not exact <= information.revealed(0.3).high
    assert missed <= 200 * 0.5


def test_three_pulls_take_a_dominant_direction_out_whichever_of_them_shows_it_least() -> None:
    values = torch.full((DIMENSION,), 0.02, dtype=torch.float64)
    values[:2] = 100.0
    J = torch.eye(ENTRIES, DIMENSION, dtype=torch.float64) * values
    prior = IsotropicPrior(0.0, TAU).bind(torch.zeros(1, dtype=torch.int64), torch.zeros(1, DIMENSION).double())
    exact = revealed(J, TAU**2 * torch.eye(DIMENSION, dtype=torch.float64), 1.0)
    generator, highs = torch.Generator().manual_seed(6), []
    for _ in range(20):
        pulled = (J.mT @ torch.randn(ENTRIES, 3, generator=generator, dtype=torch.float64))[None]
        highs.append(pulled_information(pulled, None, prior, 1e-3)[0].revealed(1.0).high)
    assert exact <= min(highs)
    assert np.median(highs) < 3 * exact


def test_the_trace_of_a_release_of_rank_one_holds_for_most_draws() -> None:
    J = torch.zeros(1, ENTRIES, DIMENSION, dtype=torch.float64)
    J[0, 0] = 1.0
    prior = IsotropicPrior(0.0, TAU).bind(torch.zeros(1, dtype=torch.int64), J[:, 0])
    generator, missed = torch.Generator().manual_seed(3), 0
    for _ in range(300):
        (information,) = pulled_information(
            J.mT @ torch.randn(ENTRIES, 10, generator=generator, dtype=torch.float64), None, prior, 0.05
        )
        trace = information.trace
        missed += not trace.low <= DIMENSION <= trace.high
        # One direction is one dimension, whatever its size.
        assert information.revealed(1e-6).high < 12 / DIMENSION
    assert missed <= 300 * 0.05


def test_further_pulls_narrow_an_interval() -> None:
    J, generator = jacobians(0.9, 1), torch.Generator().manual_seed(4)
    prior = IsotropicPrior(0.0, TAU).bind(torch.zeros(1, dtype=torch.int64), J[:, 0])
    first, more = (J.mT @ torch.randn(ENTRIES, k, generator=generator, dtype=torch.float64) for k in (10, 14))
    (wide,), (narrow,) = pulled_information(first, None, prior, 1e-3), pulled_information(more, first, prior, 1e-3)
    exact = revealed(J[0], TAU**2 * torch.eye(DIMENSION, dtype=torch.float64), 0.01)
    assert exact <= narrow.revealed(0.01).high < wide.revealed(0.01).high


def test_a_release_that_depends_on_nothing_reveals_nothing() -> None:
    prior = IsotropicPrior(0.0, TAU).bind(torch.zeros(2, dtype=torch.int64), torch.zeros(2, DIMENSION))
    for information in pulled_information(torch.zeros(2, DIMENSION, 10), None, prior, 0.01):
        assert information.trace.high == 0.0
        assert information.revealed(0.1).high == 0.0
