"""When a random probe ends: narrow enough, or no hope that it will be."""

from __future__ import annotations

import pytest
import torch

from riskaudit.linalg import GramOperator, MatrixOperator, Quadrature, lanczos, share_ends_by_exponentials
from riskaudit.sensitivity.estimates import WIDEST
from riskaudit.sensitivity.probing import DEFAULT_WIDTH, NarrowDimension, narrow_block_share

BLOCKS, PRECISION = 8, 0.2
# Eight decades of eigenvalues, as the Jacobians of images have them.
VALUES = torch.logspace(1, -7, 400, dtype=torch.float64)


def products(eps: float, depth: int) -> int:
    """That the probe of a diagonal matrix makes."""
    start = torch.ones(1, len(VALUES), dtype=torch.float64)
    narrow = narrow_block_share([eps], PRECISION, BLOCKS, depth)
    operator = GramOperator(MatrixOperator(torch.diag(VALUES.sqrt())[None]))
    (space,) = lanczos(operator, start, lambda index, space: narrow(index, space, ()), depth)
    return space.tridiagonal.num_products


def test_ends_where_it_would_not_converge_within_its_products() -> None:
    assert products(1e-6, 40) == 14


# With the smallest shift the error stays what it is for half of the way.
@pytest.mark.parametrize(("eps", "depth", "least"), [(1.0, 40, 8), (0.1, 40, 24), (1e-4, 200, 140)])
def test_goes_on_until_it_is_narrow_where_it_converges(eps: float, depth: int, least: int) -> None:
    assert least < products(eps, depth) < depth


def probe(
    spectrum: torch.Tensor, eps: float, precision: float | None, earlier: int = 0, threshold: float | None = None
) -> tuple[int, float]:
    """Products of a probe that ends by itself, and how wide the effective dimension's interval is then."""
    dimension, failure = len(spectrum), 1e-3
    thresholds = None if threshold is None else [(threshold,)]
    narrow = NarrowDimension([eps], precision, dimension, failure, thresholds)
    operator = GramOperator(MatrixOperator(torch.diag(spectrum.sqrt())[None]))
    starts = torch.randn(earlier + 1, dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [lanczos(operator, start[None], lambda _, __: False, 40)[0].tridiagonal for start in starts[:earlier]]
    (space,) = lanczos(operator, starts[-1:], lambda index, space: narrow.finished(index, space, found), dimension)
    every = [*found, space.tridiagonal]
    low, high = share_ends_by_exponentials(Quadrature(every), eps, narrow.strengths, dimension, failure)
    return space.tridiagonal.num_products, high - low


SPREAD_OUT = torch.linspace(0, 1, 800, dtype=torch.float64)


def test_a_probe_that_is_enough_goes_on_until_it_is() -> None:
    products, width = probe(SPREAD_OUT, 1e-2, None)
    assert width <= DEFAULT_WIDTH
    assert products == 6


@pytest.mark.parametrize("precision", [0.1, 0.3, 0.44])
def test_one_whose_products_change_nothing_more_ends(precision: float) -> None:
    """What keeps the interval from its aim is what earlier probes, which ended soon, left open."""
    dimension, eps = 400, 0.01
    operator = GramOperator(MatrixOperator(torch.diag(torch.logspace(0, -5, 400, dtype=torch.float64).sqrt())[None]))
    starts = torch.randn(7, dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    earlier = [lanczos(operator, start[None], lambda _, __: False, 6)[0].tridiagonal for start in starts[:6]]
    narrow = NarrowDimension([eps], precision, dimension, 1e-3)
    (space,) = lanczos(operator, starts[6:], lambda index, space: narrow.finished(index, space, earlier), dimension)
    assert 6 < space.tridiagonal.num_products < 40
    low, high = narrow._ends(0, [*earlier, space.tridiagonal])
    least, most = narrow._ends(0, [*earlier, space.tridiagonal.as_if_exhausted()])
    assert high - low - (most - least) <= 0.01 * precision * high


def test_one_that_is_not_enough_leaves_room_for_others() -> None:
    products, width = probe(SPREAD_OUT, 0.3, None)
    assert width > DEFAULT_WIDTH
    assert products == 4
    assert probe(SPREAD_OUT, 0.3, None, earlier=1)[1] <= DEFAULT_WIDTH


def test_a_precision_is_asked_for_on_top() -> None:
    assert probe(SPREAD_OUT, 1e-2, 0.01)[0] > probe(SPREAD_OUT, 1e-2, None)[0]


def test_an_interval_beside_what_decides_may_be_coarse() -> None:
    """The share is 0.95: a threshold far from it is decided soon, one inside the interval asks for all of the width."""
    products, width = probe(SPREAD_OUT, 1e-2, None)
    coarse, wider = probe(SPREAD_OUT, 1e-2, None, threshold=0.5)
    assert coarse < products
    assert width < wider <= WIDEST
    assert probe(SPREAD_OUT, 1e-2, None, threshold=0.95) == (products, width)
