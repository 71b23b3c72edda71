"""Traces of blocks from probes of the whole: they hold the truth as often as they say, and get narrower."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from riskaudit.linalg import BlockProbe, BlockTraces, Deflation, MatrixOperator, lanczos
from riskaudit.linalg.krylov.blocks import block_trace_interval
from riskaudit.linalg.operators import RepeatedOperator

BLOCKS, D = 3, 8
N = BLOCKS * D


def matrix(seed: int = 0) -> Tensor:
    """Symmetric positive semidefinite with eigenvalues over six decades, [N, N]."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))
    return basis @ torch.diag(torch.logspace(-4, 2, N, dtype=torch.float64)) @ basis.mT


def block_trace(H: Tensor, block: int, eps: float, power: int = 1) -> float:
    """tr [H (H + eps)^-power]_jj by an inverse."""
    inverse = torch.linalg.inv(H + eps * torch.eye(N, dtype=torch.float64))
    whole = H @ torch.linalg.matrix_power(inverse, power)
    part = slice(block * D, (block + 1) * D)
    return float(whole[part, part].trace())


def traces(H: Tensor, seed: int, count: int, products: int = N, failure: float = 0.1) -> list[BlockTraces]:
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randn(count, N, generator=generator, dtype=torch.float64)
    operator = RepeatedOperator(MatrixOperator(H[None], psd=True), [0] * count)
    spaces = lanczos(operator, starts, lambda _, __: False, products, None)
    probes = [BlockProbe.of(start, space, BLOCKS) for start, space in zip(starts, spaces, strict=True)]
    return [
        BlockTraces(probes, block, failure, D, norm=1.0, largest=100.0, deflation=Deflation())
        for block in range(BLOCKS)
    ]


@pytest.mark.parametrize("eps", [1e-3, 1.0, 100.0])
def test_intervals_hold_as_often_as_they_say(eps: float) -> None:
    H, seeds, failure = matrix(), 40, 0.1
    missed = np.zeros(3)
    truth = [(block_trace(H, j, eps), D - block_trace(H, j, eps), block_trace(H, j, eps, 2)) for j in range(BLOCKS)]
    for seed in range(seeds):
        for values, each in zip(truth, traces(H, seed, 4, failure=failure), strict=True):
            intervals = each.effective_dimension(eps), each.remaining(eps), each.variance(eps)
            missed += [not one.low <= value <= one.high for one, value in zip(intervals, values, strict=True)]
            assert all(one.low <= one.value <= one.high for one in intervals)
    # Beyond the rate by five standard deviations.
    number = seeds * BLOCKS
    assert (missed <= failure * number + 5 * np.sqrt(failure * number)).all()


def test_without_a_product_nothing_is_known() -> None:
    for each in traces(matrix(), 0, 2, products=0):
        interval = each.effective_dimension(1.0)
        assert (interval.low, interval.high) == pytest.approx((0.0, D * 100 / 101))


def test_more_probes_are_narrower_and_their_mean_is_the_trace() -> None:
    H, eps = matrix(1), 1.0
    widths, values = [], []
    for count in (4, 64, 1024):
        found = [each.effective_dimension(eps) for each in traces(H, 0, count, failure=1e-3)]
        widths.append(max(one.high - one.low for one in found))
        values = [one.value for one in found]
    assert widths[0] > 2 * widths[1] > 4 * widths[2]
    for block, value in enumerate(values):
        assert value == pytest.approx(block_trace(H, block, eps), rel=0.1)


@pytest.mark.parametrize("products", [1, 2, 4])
def test_unfinished_iterations_widen_the_intervals(products: int) -> None:
    """The iteration's own error is part of the interval: with many probes nothing else would hold the truth."""
    H, eps = matrix(2), 0.1
    for block, each in enumerate(traces(H, 3, 400, products, failure=1e-3)):
        for found, value in (
            (each.effective_dimension(eps), block_trace(H, block, eps)),
            (each.remaining(eps), D - block_trace(H, block, eps)),
            (each.variance(eps), block_trace(H, block, eps, 2)),
        ):
            assert found.low <= value <= found.high


def test_nothing_is_claimed_without_probes_or_with_an_infinite_norm() -> None:
    assert block_trace_interval(1.0, 0.0, 0, 1.0, 0.1) == (0.0, float("inf"))
    assert block_trace_interval(1.0, 0.0, 4, float("inf"), 0.1) == (0.0, float("inf"))
    empty = BlockTraces([], 0, 0.1, D, norm=1.0, largest=100.0, deflation=Deflation())
    assert (empty.effective_dimension(1.0).low, empty.remaining(1.0).high) == (0.0, D)
    with pytest.raises(ValueError, match="eps must be positive"):
        empty.effective_dimension(0.0)


def test_repeated_maps_are_the_maps() -> None:
    operator = MatrixOperator(torch.stack([matrix(1), matrix(2)]), psd=True)
    columns = torch.randn(4, N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = [1, 0, 1, 1]
    repeated = RepeatedOperator(operator, rows)
    assert (repeated.psd, repeated.num_samples, repeated.shape) == (True, 4, (N, N))
    torch.testing.assert_close(repeated.matmat(columns), operator.select(rows).matmat(columns))
    torch.testing.assert_close(repeated.select([1, 2]).matmat(columns[1:3]), repeated.matmat(columns)[1:3])
