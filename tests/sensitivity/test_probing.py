"""When a random probe of an upload's blocks ends: narrow enough, or no hope that it will be."""

from __future__ import annotations

import pytest
import torch

from riskaudit.linalg import GramOperator, MatrixOperator, lanczos
from riskaudit.sensitivity.probing import narrow_block_share

BLOCKS, PRECISION = 8, 0.2
# Eight decades of eigenvalues, as the Jacobians of images have them.
VALUES = torch.logspace(1, -7, 400, dtype=torch.float64)


def products(eps: float, depth: int) -> int:
    """That the probe of a diagonal matrix makes."""
    start = torch.ones(1, len(VALUES), dtype=torch.float64)
    finished = narrow_block_share([eps], PRECISION, BLOCKS, depth)
    (space,) = lanczos(GramOperator(MatrixOperator(torch.diag(VALUES.sqrt())[None])), start, finished, depth)
    return space.tridiagonal.num_products


def test_ends_where_it_would_not_converge_within_its_products() -> None:
    assert products(1e-6, 40) == 16


# With the smallest shift the error stays what it is for half of the way.
@pytest.mark.parametrize(("eps", "depth", "least"), [(1.0, 40, 8), (0.1, 40, 24), (1e-4, 200, 140)])
def test_goes_on_until_it_is_narrow_where_it_converges(eps: float, depth: int, least: int) -> None:
    assert least < products(eps, depth) < depth
