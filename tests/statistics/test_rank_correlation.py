"""Rank correlations against scipy and brute force, and intervals by how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from riskaudit.statistics.rank_correlation import rank_correlation, rank_difference

PAIRS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=4, max_size=25)


def normal_pairs(correlation: float, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], count)


@given(PAIRS)
def test_estimates_are_scipy_s_with_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    found = rank_correlation(x, y, num_resamples=10)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert (found.spearman, found.kendall) == (None, None)
        assert "are equal" in found.note
    else:
        assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
        assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic)


@pytest.mark.parametrize("method", ["percentile", "BCa"])
@pytest.mark.parametrize("ties", [False, True], ids=["continuous", "ties"])
def test_intervals_are_those_of_plain_loops(ties: bool, method: str) -> None:
    x, y = normal_pairs(0.6, 18, 3).T
    if ties:
        x, y = np.round(x), np.round(y)
    found = rank_correlation(x, y, confidence=0.9, seed=5, num_resamples=300, method=method)
    draws = np.random.default_rng(5).integers(18, size=(300, 18))
    for statistic, ends in (
        (lambda a, b: stats.spearmanr(a, b).statistic, (found.low, found.high)),
        (lambda a, b: stats.kendalltau(a, b).statistic, (found.kendall_low, found.kendall_high)),
    ):
        drawn = np.array([statistic(x[row], y[row]) for row in draws])
        shares = np.array([0.05, 0.95])
        if method == "BCa":
            estimate = statistic(x, y)
            others = np.array([statistic(np.delete(x, place), np.delete(y, place)) for place in range(18)])
            spread = others.mean() - others
            acceleration = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
            bias = stats.norm.ppf(np.mean((drawn < estimate) + 0.5 * (drawn == estimate)))
            shifted = bias + stats.norm.ppf(shares)
            shares = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
        assert ends == pytest.approx(tuple(np.quantile(drawn, shares)), abs=1e-9)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_intervals_cover_about_as_often_as_they_say(correlation: float) -> None:
    rho = 6 / np.pi * np.arcsin(correlation / 2)
    tau = 2 / np.pi * np.arcsin(correlation)
    hits = np.zeros(2)
    for trial in range(200):
        found = rank_correlation(*normal_pairs(correlation, 40, trial).T, confidence=0.9, seed=trial, num_resamples=300)
        hits += [found.low <= rho <= found.high, found.kendall_low <= tau <= found.kendall_high]
    # 90 % of 200 is 180, four standard deviations 17.
    assert ((hits >= 163) & (hits <= 197)).all(), hits


def test_the_seed_decides() -> None:
    x, y = normal_pairs(0.5, 20, 1).T
    assert rank_correlation(x, y, seed=1) == rank_correlation(x, y, seed=1)
    assert rank_correlation(x, y, seed=1).low != rank_correlation(x, y, seed=2).low


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few(count: int) -> None:
    found = rank_correlation([1.0, 2.0, 3.0][:count], [1.0, 2.0, 4.0][:count])
    assert (found.spearman, found.low, found.kendall) == (None, None, None)
    assert found.note == f"too few samples: {count}, at least 4 are needed"


@pytest.mark.parametrize(
    ("x", "y", "note"),
    [
        ([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], "all predictions are equal"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [2.0] * 5, "all errors are equal"),
    ],
)
def test_constant_sides(x: list[float], y: list[float], note: str) -> None:
    assert rank_correlation(x, y).note == note
    assert rank_difference(x, x, y).note == note


def test_a_perfect_order_claims_no_interval() -> None:
    found = rank_correlation([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 4.0, 9.0, 16.0, 25.0, 36.0])
    assert (found.spearman, found.kendall) == (1.0, 1.0)
    assert (found.low, found.high, found.kendall_low) == (None, None, None)
    assert found.note.startswith("no interval")


def test_many_samples() -> None:
    x, y = normal_pairs(0.5, 4100, 0).T
    found = rank_correlation(x, y, num_resamples=40, method="percentile")
    assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic)
    assert (found.kendall_low, found.low is None) == (None, False)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [([1.0, 2.0], [1.0], "equal length"), ([1.0, np.nan, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], "finite numbers")],
)
def test_refused(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_correlation(x, y)


def test_a_better_predictor_is_told_from_a_worse_one() -> None:
    rng = np.random.default_rng(0)
    errors = rng.normal(size=60)
    good, bad = -errors + 0.2 * rng.normal(size=60), errors + 3 * rng.normal(size=60)
    found = rank_difference(good, bad, errors)
    assert found.own == pytest.approx(stats.spearmanr(good, errors).statistic)
    assert found.other == pytest.approx(stats.spearmanr(bad, errors).statistic)
    assert found.own < 0 < found.other
    assert found.difference == pytest.approx(-found.own - found.other)
    assert 0 < found.low < found.difference < found.high
    assert found.p_value < 0.01
    other_way = rank_difference(bad, good, errors)
    assert (other_way.low, other_way.high) == pytest.approx((-found.high, -found.low))
    assert other_way.p_value == found.p_value


def test_equal_predictors_are_not_told_apart() -> None:
    x, y = normal_pairs(0.5, 30, 2).T
    found = rank_difference(x, 2 * x, y)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_the_difference_s_p_value_is_small_about_as_often_as_it_says() -> None:
    rejected = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        errors = rng.normal(size=40)
        found = rank_difference(
            errors + rng.normal(size=40), errors + rng.normal(size=40), errors, seed=trial, num_resamples=199
        )
        rejected += found.p_value <= 0.1
    # 10 % of 200 is 20, four standard deviations 17; the percentile bootstrap is a little conservative here.
    assert rejected <= 37
