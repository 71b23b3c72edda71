"""Samples that have left are let go of by halves, and never come back."""

from __future__ import annotations

import torch
from contracts.eigenvalue_solver import starts
from recording_operator import RecordingOperator

from riskaudit.linalg import MatrixOperator
from riskaudit.linalg.active import ActiveOperator


def diagonal_operator(samples: int) -> RecordingOperator:
    """Sample i is (i + 1) times the identity."""
    return RecordingOperator(
        MatrixOperator(torch.arange(1.0, samples + 1).double()[:, None, None] * torch.eye(3).double())
    )


def test_narrows_when_at_most_half_are_active() -> None:
    held = ActiveOperator(diagonal_operator(6))
    assert held.narrow([True, False, True, True, False, True]) is None
    assert held.rows == [0, 1, 2, 3, 4, 5]
    assert held.narrow([True, False, False, True, False, True]) == [0, 3, 5]
    assert held.rows == [0, 3, 5]
    assert held.narrow([False, True, True]) is None
    assert held.narrow([False, False, True]) == [2]
    assert held.rows == [5]
    # Nobody left: nothing to narrow to.
    assert held.narrow([False]) is None
    assert held.operator.num_samples == 1


def test_products_stand_where_their_samples_do() -> None:
    operator = diagonal_operator(5)
    held, vector = ActiveOperator(operator), starts(5, 3)
    active = torch.ones(5, dtype=torch.bool)
    for leaving, count in ((None, 5), (0, 5), (4, 5), (1, 2), (2, 1)):
        if leaving is not None:
            active[leaving] = False
        product = held.matvec(vector, active)
        assert operator.held[-1] == count
        assert torch.isfinite(product).all()
        expected = torch.arange(1.0, 6)[:, None] * vector
        torch.testing.assert_close(product[active], expected[active])
