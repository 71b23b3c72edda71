"""Numbers that leave beside an update carry little: names, ranges and digits are bounded."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from riskaudit.errors import GuardError, SettingsError
from riskaudit.integrations.allowance import Allowance, is_round_number, number_of_samples
from riskaudit.release import Batch


@pytest.mark.parametrize("count", [0, -1, 5, 2.0, 1.5, True, "4", math.nan, [4], 2**62])
def test_a_count_is_a_whole_number_up_to_the_samples(count) -> None:
    with pytest.raises(GuardError, match="between 1 and the 4 samples"):
        Allowance(["num-examples"]).restrict({"num-examples": count}, 4)


def test_counts_without_a_batch_have_a_bound_of_their_own() -> None:
    assert Allowance(["n"], max_examples=10).restrict({"n": 10}) == {"n": 10}
    with pytest.raises(GuardError):
        Allowance(["n"], max_examples=10).restrict({"n": 11})


@pytest.mark.slow
@given(st.floats(), st.dictionaries(st.text(max_size=5), st.one_of(st.text(), st.floats(), st.integers(), st.binary())))
def test_metrics_keep_their_range_and_five_digits(value, others) -> None:
    others.pop("loss", None)
    allowed = Allowance(["n"], {"loss": (0.0, 10.0)}).restrict({"loss": value, **others} | {"n": 1})
    assert set(allowed) <= {"loss", "n"}
    if "loss" in allowed:
        assert 0 <= value <= 10
        assert allowed["loss"] == float(f"{value:.5g}")
    else:
        assert not 0 <= value <= 10


def test_whole_numbers_lose_their_digits_as_well() -> None:
    assert Allowance([], ["seen"]).restrict({"seen": 123_456}) == {"seen": 123_460}
    assert Allowance([], ["seen"]).restrict({"seen": 10**9}) == {}


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (math.nan, 1.0), (0.0, math.inf)])
def test_ranges_that_are_none(bounds) -> None:
    with pytest.raises(SettingsError, match="finite"):
        Allowance([], {"loss": bounds})


@pytest.mark.parametrize("most", [0, -1, 1.5, True])
def test_a_largest_count_that_is_none(most) -> None:
    with pytest.raises(SettingsError, match="max_examples"):
        Allowance([], max_examples=most)


@pytest.mark.parametrize(("value", "expected"), [(0, True), (3, True), (True, False), (2**40, False), (1.0, False)])
def test_round_numbers(value, expected) -> None:
    assert is_round_number(value) is expected


def test_the_number_of_samples_is_that_of_the_batch() -> None:
    inputs, targets = torch.zeros(3, 2), torch.zeros(3)
    assert number_of_samples((inputs, targets)) == number_of_samples(Batch(inputs, targets)) == 3
