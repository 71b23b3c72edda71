"""Groups and inequality against scipy and values known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from riskaudit.statistics.groups import group_statistic, kruskal_wallis
from riskaudit.statistics.summaries import gini, max_min_ratio

VALUES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], 0), ([2.0, 2.0, 2.0], 0), ([0.0, 1.0], 0.5), ([0.0, 0.0, 0.0, 1.0], 0.75), ([1.0, 2.0, 3.0], 2 / 9)],
)
def test_gini_by_hand(values: list[float], expected: float) -> None:
    assert gini(values) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [-1.0, 2.0]])
def test_gini_has_no_meaning(values: list[float]) -> None:
    assert gini(values) is None


@given(VALUES, st.floats(1e-3, 1e3))
def test_gini_by_definition(values: list[float], scale: float) -> None:
    data = np.array(values)
    direct = np.abs(data[:, None] - data[None]).mean() / (2 * data.mean())
    assert gini(values) == pytest.approx(direct, abs=1e-9)
    assert gini([scale * value for value in values]) == pytest.approx(gini(values), abs=1e-9)
    assert gini(values[::-1]) == pytest.approx(gini(values), abs=1e-12)
    assert 0 <= gini(values) < 1


@pytest.mark.parametrize(
    ("values", "expected"), [([2.0, 8.0, 4.0], 4), ([5.0], 1), ([0.0, 1.0], None), ([], None), ([-1.0, 1.0], None)]
)
def test_max_min_ratio(values: list[float], expected: float | None) -> None:
    assert max_min_ratio(values) == expected


def test_group_statistic_of_known_values() -> None:
    found = group_statistic([1.0, 2.0, 3.0, 4.0, 10.0], confidence=0.9, seed=0)
    assert (found.mean, found.min, found.max, found.num_samples) == (4, 1, 10, 5)
    assert found.std == pytest.approx(np.std([1, 2, 3, 4, 10], ddof=1))
    assert found.low < 4 < found.high
    assert (found.confidence, found.note) == (0.9, None)


def test_group_statistic_repeats_itself() -> None:
    values = list(np.random.default_rng(0).exponential(size=20))
    assert group_statistic(values, confidence=0.95, seed=1) == group_statistic(values, confidence=0.95, seed=1)
    assert group_statistic(values, confidence=0.95, seed=1).low != group_statistic(values, confidence=0.95, seed=2).low


@pytest.mark.parametrize("count", [1, 4])
def test_too_few_for_an_interval(count: int) -> None:
    found = group_statistic([1.0] * count, confidence=0.95, seed=0)
    assert (found.low, found.high, found.confidence) == (None, None, None)
    assert found.note == f"too few samples for an interval: {count}, at least 5 are needed"
    assert (found.std is None) == (count == 1)


def test_interval_is_that_of_scipy_s_bootstrap() -> None:
    values = np.random.default_rng(1).normal(3, 2, 200)
    found = group_statistic(list(values), confidence=0.9, seed=0)
    other = stats.bootstrap((values,), np.mean, confidence_level=0.9, method="percentile", rng=0).confidence_interval
    assert found.low == pytest.approx(other.low, abs=0.05)
    assert found.high == pytest.approx(other.high, abs=0.05)


def test_interval_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        found = group_statistic(list(rng.normal(1, 1, 40)), confidence=0.9, seed=trial)
        covered += found.low <= 1 <= found.high
    # 90 % of 200 is 180; the percentile bootstrap of 40 values covers slightly less.
    assert 165 <= covered <= 195


def test_kruskal_wallis_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    groups = {number: list(rng.normal(number / 2, 1, 8 + number)) for number in range(3)}
    found, expected = kruskal_wallis(groups), stats.kruskal(*groups.values())
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.status, found.note) == ("exact", None)


def test_kruskal_wallis_leaves_small_groups_out_and_says_so() -> None:
    rng = np.random.default_rng(4)
    groups = {0: list(rng.normal(size=6)), 1: list(rng.normal(size=6)), 2: [100.0] * 4}
    found = kruskal_wallis(groups)
    assert found.p_value == pytest.approx(stats.kruskal(groups[0], groups[1]).pvalue)
    assert found.note == "1 classes with fewer than 5 samples left out"


@pytest.mark.parametrize("groups", [{}, {0: [1.0] * 9}, {0: [1.0] * 9, 1: [2.0] * 4}], ids=["none", "one", "small"])
def test_kruskal_wallis_of_too_few(groups: dict[int, list[float]]) -> None:
    found = kruskal_wallis(groups)
    assert (found.status, found.statistic, found.p_value) == ("not_applicable", None, None)
    assert found.note.startswith("too few samples")


def test_kruskal_wallis_of_equal_values() -> None:
    found = kruskal_wallis({0: [1.0] * 5, 1: [1.0] * 5})
    assert (found.statistic, found.p_value, found.note) == (0, 1, "all values are equal")
