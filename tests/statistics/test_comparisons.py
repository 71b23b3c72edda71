"""Pair tests, corrections, effect sizes and Lorenz curves against scipy and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from riskaudit.statistics.groups import (
    MOST_FOR_EXACT,
    MOST_FOR_PAIRS,
    epsilon_squared,
    holm,
    least_p_value,
    mann_whitney,
    pair_tests,
)
from riskaudit.statistics.summaries import gini, lorenz_curve, top_share

SAMPLES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float]) -> None:
    level, rejected = 0.05, set()
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        if (len(p_values) - place) * p_values[index] > level:
            break
        rejected.add(int(index))
    found = holm(p_values)
    assert {index for index, value in enumerate(found) if value <= level} == rejected
    assert all(own <= adjusted <= 1 for own, adjusted in zip(p_values, found, strict=True))


@given(SAMPLES, SAMPLES)
def test_effect_is_cliffs_delta(first: list[float], second: list[float]) -> None:
    statistic, p_value, effect = mann_whitney(first, second)
    delta = np.mean([np.sign(x - y) for x, y in itertools.product(first, second)])
    assert effect == pytest.approx(delta, abs=1e-12)
    assert statistic == pytest.approx(sum((x > y) + 0.5 * (x == y) for x, y in itertools.product(first, second)))
    assert 0 <= p_value <= 1
    assert mann_whitney(second, first)[2] == pytest.approx(-effect, abs=1e-12)


@pytest.mark.parametrize("sizes", [(6, 7), (20, 30), (8, 200), (8, 600)])
def test_mann_whitney_is_that_of_scipy(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(sizes))
    first, second = rng.normal(size=sizes[0]), rng.normal(0.5, size=sizes[1])
    expected = stats.mannwhitneyu(first, second, method="auto" if max(sizes) <= MOST_FOR_EXACT else "asymptotic")
    statistic, p_value, _ = mann_whitney(list(first), list(second))
    assert statistic == expected.statistic
    assert p_value == pytest.approx(expected.pvalue)


def test_equal_values_have_no_difference() -> None:
    assert mann_whitney([2.0] * 5, [2.0] * 6) == (15.0, 1.0, 0.0)


def test_pairs_are_corrected_together_and_small_groups_left_out() -> None:
    rng = np.random.default_rng(0)
    groups = {name: list(rng.normal(place, 1, 12)) for place, name in enumerate("abc")} | {"d": [9.0] * 4}
    found = pair_tests(groups)
    assert [(pair.first, pair.second) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    expected = [stats.mannwhitneyu(groups[x], groups[y]).pvalue for x, y in itertools.combinations("abc", 2)]
    assert [pair.p_value for pair in found] == pytest.approx(expected)
    assert [pair.p_adjusted for pair in found] == pytest.approx(holm(expected))
    assert pair_tests({}) == pair_tests({"a": [1.0] * 9}) == []


def test_very_many_groups_are_held_against_the_others() -> None:
    rng = np.random.default_rng(1)
    groups = {f"{place}": list(rng.normal(3 * (place == 4), 1, 6)) for place in range(MOST_FOR_PAIRS + 1)}
    found = pair_tests(groups)
    assert [(pair.first, pair.second) for pair in found] == [(name, None) for name in groups]
    others = [value for name, values in groups.items() if name != "4" for value in values]
    assert found[4].p_value == pytest.approx(stats.mannwhitneyu(groups["4"], others).pvalue)
    assert [pair.first for pair in found if pair.p_adjusted < 0.05] == ["4"]


@pytest.mark.parametrize("sizes", [(3, 4), (5, 5)])
def test_least_p_value_is_that_of_groups_that_do_not_overlap(sizes: tuple[int, int]) -> None:
    first, second = np.arange(sizes[0]), 10 + np.arange(sizes[1])
    assert least_p_value(*sizes) == pytest.approx(stats.mannwhitneyu(first, second, method="exact").pvalue)


def test_epsilon_squared_at_both_ends() -> None:
    rng = np.random.default_rng(2)
    alike = stats.kruskal(*rng.normal(size=(3, 400))).statistic
    assert epsilon_squared(alike, 1200) < 0.02
    # H / (n - 1) is the share of the ranks' variance that lies between the groups.
    groups = [rng.normal(place, 1, 10) for place in range(3)]
    ranks = stats.rankdata(np.concatenate(groups)).reshape(3, 10)
    between = 10 * ((ranks.mean(1) - ranks.mean()) ** 2).sum() / ((ranks - ranks.mean()) ** 2).sum()
    assert epsilon_squared(stats.kruskal(*groups).statistic, 30) == pytest.approx(between)
    assert epsilon_squared(0.0, 1) is None


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_lorenz_curve_by_definition(values: list[float]) -> None:
    curve = lorenz_curve(values)
    ordered = sorted(values)
    for place, (share, held) in enumerate(curve):
        assert share == pytest.approx(place / len(values))
        assert held == pytest.approx(sum(ordered[:place]) / sum(values))
    # The Gini coefficient is twice the area between the curve and the diagonal.
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(curve))
    assert gini(values) == pytest.approx(1 - 2 * area, abs=1e-9)


def test_long_lorenz_curves_are_thinned() -> None:
    values = list(np.random.default_rng(0).exponential(size=1000))
    thin, whole = lorenz_curve(values), dict(lorenz_curve(values, most=1001))
    assert len(thin) == 101
    assert all(whole[share] == held for share, held in thin)
    assert (thin[0], thin[-1]) == ((0.0, 0.0), (1.0, 1.0))


@pytest.mark.parametrize(
    ("values", "largest", "expected"),
    [
        ([1.0] * 10, True, 0.1),
        ([0.0] * 9 + [5.0], True, 1.0),
        ([1.0] * 9 + [11.0], True, 0.55),
        ([1.0] * 9 + [11.0], False, 0.05),
        ([3.0], True, 0.1),
        ([0.0, 0.0], True, None),
        ([], True, None),
    ],
)
def test_top_share(values: list[float], largest: bool, expected: float | None) -> None:
    assert top_share(values, 0.1, largest=largest) == (None if expected is None else pytest.approx(expected))
