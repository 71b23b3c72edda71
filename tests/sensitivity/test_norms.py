"""Norms of solutions: whatever other samples are worked out beside one."""

from __future__ import annotations

import pytest
import torch

from riskaudit.linalg import MatrixOperator
from riskaudit.priors import white_prior
from riskaudit.sensitivity.ends import SpectrumEnds
from riskaudit.sensitivity.norms import BracketedNorms, solution_norms
from riskaudit.sensitivity.plan import Clock, Plan

N = 40
# The first spectrum has a lower end that layers tell of, the second one none.
VALUES = torch.stack([torch.linspace(1, 3, N), torch.logspace(2, -6, N)]).double()
LEAST = torch.tensor([1.0, 0.0], dtype=torch.float64)


def norms_of(rows: list[int], shift: float = 0.0, most: list[float] | None = None) -> BracketedNorms:
    """||(H + shift)^-1 b|| of some of the two."""
    draws = torch.randn(2, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = Plan("lanczos", "", "quadrature", "", 1e-6, 24, None, 4, 1e-3, 2, frozenset())
    operator = MatrixOperator(torch.diag_embed(VALUES[rows]), psd=True)
    ends = SpectrumEnds(operator, plan, lambda: LEAST[rows], lambda _: draws[rows], Clock())
    rhs = VALUES.sqrt()[rows]
    prior = white_prior(torch.zeros(len(rows), N, dtype=torch.float64))
    return solution_norms(operator, prior, ends, ends.largest_high, rhs, [shift] * len(rows), most=most)


@pytest.mark.parametrize("row", [0, 1])
def test_a_sample_has_the_same_ends_in_any_company(row: int) -> None:
    (alone,), together = norms_of([row]).intervals, norms_of([0, 1]).intervals[row]
    truth = float((VALUES[row].sqrt() / VALUES[row]).norm())
    assert alone.low == pytest.approx(together.low, rel=1e-9)
    assert alone.high == pytest.approx(together.high, rel=1e-9)
    assert 0 < alone.low <= truth <= alone.high


def test_an_upper_end_that_is_known_counts() -> None:
    shift = 1e-2
    truth = float((VALUES[1].sqrt() / (VALUES[1] + shift)).norm())
    (plain,), (told,) = norms_of([1], shift).intervals, norms_of([1], shift, [1.05 * truth]).intervals
    assert plain.high > 1.1 * truth
    assert plain.low <= told.low <= truth <= told.high <= 1.05 * truth * (1 + 1e-12)
