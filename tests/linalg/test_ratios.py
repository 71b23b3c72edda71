"""Ends of mean eigenvalues from ratios of probes: missed as rarely as claimed, narrower than by means of the forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr
from scipy.stats import binom

from riskaudit.linalg import trace_interval
from riskaudit.linalg.krylov.ratios import highest_mean, lowest_mean, mean_ends

DRAWS = 600
SPECTRA = {
    "all or nothing": np.r_[np.ones(20), np.zeros(80)],
    "one": np.r_[1.0, np.zeros(49)],
    "one, tiny": np.r_[1e-3, np.zeros(49)],
    "flat": np.full(60, 0.5),
    "all": np.ones(10),
    "nothing": np.zeros(10),
    "two": np.array([0.9, 0.1]),
    "alone": np.array([0.3]),
    "uniform": np.linspace(0, 1, 200),
    "mostly revealed": np.r_[np.full(170, 0.97), np.linspace(0, 1, 30)],
}


def ratios(values: np.ndarray, num_probes: int, *functions) -> list[np.ndarray]:
    """Of each function of the eigenvalues, [DRAWS]."""
    squares = np.random.default_rng(0).chisquare(1, (DRAWS, num_probes, len(values)))
    return [(squares @ function(values)).sum(1) / squares.sum((1, 2)) for function in functions]


def misses(ends: list[tuple[float, float]], truth: float) -> int:
    return sum(not low - 1e-12 <= truth <= high + 1e-12 for low, high in ends)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize(("num_probes", "failure"), [(1, 0.3), (2, 0.01), (8, 0.1)])
def test_ends_hold_as_often_as_claimed(kind: str, num_probes: int, failure: float) -> None:
    values = SPECTRA[kind]
    count, most = len(values), binom.ppf(0.9999, DRAWS, failure)
    (shares,) = ratios(values, num_probes, lambda x: x)
    plain = [mean_ends(share, share, count, num_probes, failure) for share in shares]
    assert misses(plain, values.mean()) <= most
    # Half as large, of a matrix that is known to be at most half as large.
    halved = [mean_ends(share / 2, share / 2, count, num_probes, failure, most=0.5) for share in shares]
    assert np.allclose(np.array(halved), np.array(plain) / 2, atol=1e-12)


def test_the_bound_is_met_by_the_spectrum_that_it_is_for() -> None:
    """Of zeros and ones a ratio has a beta distribution, and misses are within an order of what is claimed."""
    failure = 0.2
    shares = ratios(SPECTRA["all or nothing"], 2, lambda x: x)[0]
    missed = misses([mean_ends(share, share, 100, 2, failure) for share in shares], 0.2)
    assert missed > 0.1 * failure * DRAWS


@given(st.floats(1e-6, 1 - 1e-6), st.floats(1e-6, 2.0))
def test_ends_solve_their_equation(ratio: float, reach: float) -> None:
    for end in (lowest_mean(ratio, reach), highest_mean(ratio, reach)):
        divergence = rel_entr(end, ratio) + rel_entr(1 - end, 1 - ratio)
        assert divergence == pytest.approx(reach, rel=1e-5) or (end in (0, 1) and divergence <= reach)


def test_ratios_are_narrower_than_means_of_forms() -> None:
    values, failure = SPECTRA["all or nothing"], 1e-4
    total = values.sum()
    low, high = mean_ends(values.mean(), values.mean(), 100, 2, failure)
    forms = trace_interval(total, total, 2, 1.0, failure)
    assert high - low < 0.95 * (forms[1] - forms[0]) / 100


def test_without_an_upper_end_or_a_probe() -> None:
    low, high = mean_ends(0.2, math.inf, 50, 3, 0.01)
    assert 0 < low < 0.2
    assert high == 1
    assert mean_ends(0.0, 0.0, 50, 3, 0.01) == (0, 0)
    assert mean_ends(0.0, 0.0, 50, 0, 0.01, most=0.5) == (0, 0.5)
    assert mean_ends(0.1, 0.2, 50, 3, 0.01, most=math.inf)[1] > 0.2
