"""Conformal factors: ranks by hand, and coverage on exchangeable draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from riskaudit.statistics.conformal import conformal_factors, fewest_samples


@pytest.mark.parametrize(
    ("count", "coverage", "ranks"),
    [
        (19, 0.9, (1, 19)),
        (18, 0.9, (None, None)),
        (39, 0.9, (2, 38)),
        (40, 0.9, (2, 39)),
        (99, 0.9, (5, 95)),
        (9, 0.8, (1, 9)),
        (3, 0.5, (1, 3)),
        (0, 0.9, (None, None)),
    ],
)
def test_ranks_by_hand(count: int, coverage: float, ranks: tuple[int | None, int | None]) -> None:
    # The k-th smallest ratio is k.
    attacked = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    found = conformal_factors(list(attacked), [1.0] * count, coverage=coverage)
    assert (found.low, found.high) == ranks
    assert (found.coverage, found.num_samples) == (coverage, count)


@pytest.mark.parametrize(("coverage", "count"), [(0.9, 19), (0.95, 39), (0.5, 3), (0.8, 9), (0.99, 199)])
def test_the_fewest_samples_just_suffice(coverage: float, count: int) -> None:
    assert fewest_samples(coverage) == count
    values = [float(value) for value in range(1, count + 1)]
    assert conformal_factors(values, values, coverage=coverage).low == 1.0
    assert conformal_factors(values[1:], values[1:], coverage=coverage).low is None


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("count", [19, 24, 60])
def test_coverage_of_exchangeable_draws(count: int, coverage: float) -> None:
    """At least 1 - a, and at most 2/(n+1) above it, whatever the distribution; heavy tails here."""
    rng = np.random.default_rng(1)
    trials, inside = 4000, 0
    for _ in range(trials):
        predicted = rng.gamma(2.0, size=count + 1)
        attacked = predicted * np.exp(rng.standard_t(2, size=count + 1))
        found = conformal_factors(list(attacked[:-1]), list(predicted[:-1]), coverage=coverage)
        low, high = (factor * predicted[-1] for factor in (found.low, found.high))
        inside += low <= attacked[-1] <= high
    spread = 4 * math.sqrt(coverage * (1 - coverage) / trials)
    assert coverage - spread <= inside / trials <= coverage + 2 / (count + 1) + spread


def test_exact_attacks_and_predictions() -> None:
    attacked, predicted = [0.0, 0.5, 1.0], [1.0, 1.0, 0.0]
    found = conformal_factors(attacked, predicted, coverage=0.5)
    assert (found.low, found.high) == (0.0, None)
    assert conformal_factors([0.0] * 3, [0.0] * 3, coverage=0.5).low == 1.0


@pytest.mark.parametrize(
    ("attacked", "predicted", "coverage"),
    [([1.0], [1.0], 1.0), ([1.0], [1.0], 0.0), ([math.nan], [1.0], 0.9), ([1.0], [-1.0], 0.9), ([1.0], [], 0.9)],
)
def test_refused(attacked: list[float], predicted: list[float], coverage: float) -> None:
    with pytest.raises(ValueError, match=r"expected|zip"):
        conformal_factors(attacked, predicted, coverage=coverage)
