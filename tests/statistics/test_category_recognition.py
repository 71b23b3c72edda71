"""Candidates under Gaussian noise: against attackers that are run, and against what is known exactly."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import norm

from riskaudit.statistics.recognition import recognition

SIGMAS = (0.03, 0.3, 1.0, 3.0, 30.0, 1e4)


def made(differences: np.ndarray, *, with_gram: bool = True):
    """From D [K - 1, P]."""
    gram = differences @ differences.T if with_gram else None
    return recognition(np.linalg.norm(differences, axis=1), gram, np.random.default_rng(0), 1e-4)


def rate(points: np.ndarray, sent: int, sigma: float, draws: int = 40_000) -> float:
    """How often the nearest of the points [K, P] is the one that was sent with noise; ties are broken by lot."""
    noise = np.random.default_rng(7).standard_normal((draws, points.shape[1]))
    observed = points[sent] + sigma * noise
    gaps = np.square(observed[:, None] - points).sum(-1)
    best = gaps <= gaps.min(1, keepdims=True)
    return float((best[:, sent] / best.sum(1)).mean())


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_share_of_right_guesses(count: int) -> None:
    differences = (
        np.random.default_rng(count).standard_normal((count - 1, 5)) * np.geomspace(0.2, 3, count - 1)[:, None]
    )
    points, found = np.vstack([np.zeros(5), differences]), made(differences)
    for sigma in SIGMAS:
        right, expected = found.right(sigma), rate(points, 0, sigma)
        assert right.value == pytest.approx(expected, abs=0.012)
        if count == 2:
            assert right.status == "exact"
            assert right.value == pytest.approx(norm.cdf(np.linalg.norm(differences) / 2 / sigma), rel=1e-12)
            continue
        assert right.low - 0.01 <= expected <= right.high + 0.01
        assert right.high - right.low < 0.06
        mean = np.mean([rate(points, sent, sigma, 8000) for sent in range(count)])
        nearest = 2 * norm.cdf(np.linalg.norm(differences, axis=1).min() / 2 / sigma) - 1
        wanted = max(nearest, (mean - 1 / count) / (1 - 1 / count))
        revealed = found.revealed(sigma)
        assert revealed.value == pytest.approx(wanted, abs=0.03)
        assert revealed.low - 0.015 <= wanted <= revealed.high + 0.015


def test_nothing_is_revealed_by_boundless_noise_and_all_by_none() -> None:
    # The likeliest of three in a row is one of the ends, whatever was sent.
    row = np.array([[1.0, 0.0], [2.0, 0.0]])
    found = made(row)
    assert found.right(1e6).value == pytest.approx(0.5, abs=0.02)
    assert found.revealed(1e6).high < 1e-5
    assert found.right(1e-3).low == pytest.approx(1.0)
    assert found.revealed(1e-3).low == pytest.approx(1.0)
    highs = [found.revealed(sigma).high for sigma in np.geomspace(1e-3, 1e6, 40)]
    assert all(first >= second - 1e-12 for first, second in pairwise(highs))


def test_candidates_with_one_release_are_guessed_among() -> None:
    found = made(np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0]]))
    assert found.right(0.1).value == pytest.approx(1 / 3, abs=0.02)
    assert found.right(0.1).high <= 0.5
    nothing = made(np.zeros((4, 3)))
    assert nothing.revealed(0.1).high == 0.0
    assert nothing.right(0.1).value == pytest.approx(1 / 5, abs=0.02)
    assert made(np.zeros((1, 3))).right(0.1).value == 0.5


def test_bounds_alone_hold() -> None:
    differences = np.random.default_rng(3).standard_normal((9, 4))
    points = np.vstack([np.zeros(4), differences])
    whole, bare = made(differences), made(differences, with_gram=False)
    for sigma in (0.1, 0.5, 2.0):
        right, revealed = bare.right(sigma), bare.revealed(sigma)
        assert (right.value, right.status, revealed.value) == (None, "bracketed", None)
        assert right.low <= rate(points, 0, sigma) + 0.01 <= right.high + 0.02
        assert revealed.high >= whole.revealed(sigma).value - 1e-9
        union = 1 - sum(norm.sf(np.linalg.norm(each) / 2 / sigma) for each in differences)
        assert right.low == pytest.approx(max(0.0, union))


def test_the_same_generator_gives_the_same_numbers() -> None:
    differences = np.random.default_rng(3).standard_normal((4, 4))
    assert made(differences).right(1.0) == made(differences).right(1.0)
    assert math.isclose(made(differences).band, math.sqrt(math.log(4e4 * math.e) / 2**15))
