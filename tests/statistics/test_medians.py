"""Medians compared over samples and seeds: what the bootstrap covers, and what it leaves out."""

from __future__ import annotations

import numpy as np
import pytest

from riskaudit.statistics.groups import compare_medians


def test_order_and_reference() -> None:
    found = compare_medians({"a": np.full((1, 6), 1.0), "b": np.full((2, 6), 3.0), "c": np.full((1, 6), 2.0)})
    assert list(found) == ["b", "c", "a"]
    assert [one.difference for one in found.values()] == [0, 1, 2]
    aside = compare_medians({"b": np.full((2, 6), 3.0), "c": np.full((1, 6), 2.0)}, aside=("b",))
    assert [one.difference for one in aside.values()] == [-1, 0]
    assert compare_medians({"b": np.full((1, 6), 3.0)}, aside=("b",))["b"].difference == 0


def test_missing_values() -> None:
    found = compare_medians({"a": np.array([[np.nan, 1, 2, 3, np.nan, np.nan]]), "b": np.full((1, 6), np.nan)})
    assert list(found) == ["a"]
    assert found["a"].median == 2
    assert found["a"].low >= 1
    assert compare_medians({}) == {}


def test_no_interval_of_few_samples() -> None:
    one = compare_medians({"a": np.ones((9, 4))})["a"]
    assert (one.low, one.high, one.difference_low) == (None, None, None)


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    same = rng.normal(size=(4, 40))
    apart = same + np.array([[-3.0], [-1.0], [1.0], [3.0]])
    found = compare_medians({"same": same, "apart": apart})
    assert found["apart"].high - found["apart"].low > 2 * (found["same"].high - found["same"].low)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_interval_covers_about_as_often_as_it_says(seed) -> None:
    rng = np.random.default_rng(seed)
    hits = 0
    for place in range(100):
        values = rng.exponential(size=(1, 30))
        one = compare_medians({"a": values}, seed=place, num_resamples=300)["a"]
        hits += one.low <= np.log(2) <= one.high
    assert 88 <= hits <= 100


def test_the_same_seed_gives_the_same_interval() -> None:
    values = {"a": np.random.default_rng(0).normal(size=(3, 20))}
    assert compare_medians(values, seed=4) == compare_medians(values, seed=4)
    assert compare_medians(values, seed=4) != compare_medians(values, seed=5)
