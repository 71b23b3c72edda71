"""Sums of weighted chi-squares: exact cases, Monte Carlo, Satterthwaite's approximation, and bounds from the mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from riskaudit.statistics.chi_squares import (
    _law,
    least_below,
    least_quantile,
    most_below,
    most_quantile,
    probability_below,
    quantile,
    satterthwaite_quantile,
)

SHARES = (1e-12, 1e-6, 1e-3, 0.05, 0.3, 0.5, 0.7, 0.95, 0.999, 1 - 1e-9)


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 16, 100, 784, 4096])
def test_equal_weights_are_a_chi_square(dimension: int) -> None:
    weights = np.full(dimension, 3.7)
    for share in SHARES:
        x = 3.7 * chi2.ppf(share, dimension)
        assert probability_below(weights, x) == pytest.approx(share, abs=1e-9)
    # Lower tails have a small relative error too.
    assert probability_below(weights, 3.7 * chi2.ppf(1e-30, dimension)) == pytest.approx(1e-30, rel=1e-6)


@pytest.mark.parametrize(
    "means", [[1.0, 0.1, 0.01, 1e-3], [1.0, 1e-6], [1.0, 0.9, 0.8], [1e8, 1.0], np.geomspace(1, 1e-9, 10)], ids=range(5)
)
def test_pairs_are_a_hypoexponential(means) -> None:
    """Two equal weights s make an exponential of mean 2 s, whose sums have a closed form."""
    means = np.asarray(means)
    for x in np.geomspace(0.05 * means.sum(), 20 * means.sum(), 12):
        survival = sum(
            np.exp(-x / one) * np.prod([one / (one - other) for other in np.delete(means, index)])
            for index, one in enumerate(means)
        )
        assert probability_below(np.repeat(means, 2) / 2, x) == pytest.approx(1 - survival, abs=1e-7)


WEIGHTS = {
    "spread-over-12-decades": np.geomspace(1e-12, 1, 300),
    "one-and-a-crowd": np.r_[1.0, np.full(1500, 2e-3)],
    "one-and-dust": np.r_[1.0, np.full(1500, 1e-6)],
    "two": np.array([1.0, 1e-4]),
    "linear": np.linspace(0, 1, 50),
    "harmonic": 1 / np.arange(1, 400),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", WEIGHTS)
def test_monte_carlo(name: str) -> None:
    weights, count = WEIGHTS[name], 40_000
    rng = np.random.default_rng(0)
    drawn = np.concatenate([rng.standard_normal((1000, len(weights))) ** 2 @ weights for _ in range(count // 1000)])
    for share in (0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.999):
        x = np.quantile(drawn, share)
        assert probability_below(weights, x) == pytest.approx(share, abs=4.5 * (share * (1 - share) / count) ** 0.5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_quantile_is_the_inverse(name: str, share: float) -> None:
    assert probability_below(WEIGHTS[name], quantile(WEIGHTS[name], share)) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_density_is_the_slope_of_the_probability(name: str) -> None:
    weights = WEIGHTS[name]
    for share in (0.001, 0.3, 0.95):
        x = quantile(weights, share)
        below, above = probability_below(weights, x * np.exp(-1e-3)), probability_below(weights, x * np.exp(1e-3))
        assert _law(weights, x).slope == pytest.approx((above - below) / 2e-3, rel=1e-4)


@pytest.mark.parametrize("name", ["linear", "harmonic"])
def test_satterthwaite_is_near(name: str) -> None:
    weights = WEIGHTS[name]
    for share in (0.2, 0.5, 0.8):
        assert probability_below(weights, satterthwaite_quantile(weights, share)) == pytest.approx(share, abs=0.08)


def test_edges() -> None:
    assert probability_below(np.zeros(3), 0.0) == 1
    assert probability_below(np.zeros(3), 1e-300) == 1
    assert probability_below(np.ones(3), 0.0) == 0
    assert probability_below(np.ones(3), -1.0) == 0
    assert probability_below(np.ones(3), np.inf) == 1
    assert probability_below(np.ones(3), 1e-300) == pytest.approx(0, abs=1e-12)
    assert probability_below(1e-200 * np.ones(3), 1e-200) == pytest.approx(chi2.cdf(1, 3))
    assert quantile(np.zeros(4), 0.5) == 0


SPECTRA = st.lists(st.one_of(st.just(0.0), st.floats(1e-8, 10)), min_size=1, max_size=30).map(np.array)


@settings(deadline=None, max_examples=60)
@given(SPECTRA, st.floats(1e-3, 5), st.floats(1.0, 3.0), st.floats(0.5, 1.0))
def test_bounds_from_the_mean_hold(weights, ratio: float, slack: float, below: float) -> None:
    mean, norm = float(weights.sum()), slack * float(weights.max())
    if mean == 0:
        return
    x = ratio * mean
    truth = probability_below(weights, x)
    assert truth <= most_below(below * mean, norm, x) + 1e-9
    assert truth >= least_below(mean / below, norm, x) - 1e-9
    assert 0 <= least_below(mean / below, norm, x) <= most_below(below * mean, norm, x) <= 1
    assert probability_below(weights, least_quantile(below * mean, norm, 0.05)) <= 0.05 + 1e-7
    assert probability_below(weights, most_quantile(mean / below, norm, 0.95)) >= 0.95 - 1e-7


@settings(deadline=None, max_examples=60)
@given(SPECTRA, st.floats(1e-3, 5), st.floats(1.01, 2))
def test_more_room_is_more_probable(weights, ratio: float, factor: float) -> None:
    x = ratio * float(weights.sum())
    assert probability_below(weights, x) <= probability_below(weights, factor * x) + 1e-9
