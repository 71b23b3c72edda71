"""Truncated conjugate gradient against dense solves, and what makes it fit for a Newton method."""

from __future__ import annotations

import itertools

import torch

from riskaudit.linalg import MatrixOperator
from riskaudit.linalg.solvers.truncated_cg import truncated_cg


def problem(count: int = 3, n: int = 12, spread: float = 3.0) -> tuple[MatrixOperator, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(count, n, n, generator=generator, dtype=torch.float64)
    scales = torch.logspace(0, spread, n, dtype=torch.float64)
    matrices = factors.mT @ (scales[:, None] * factors)
    return MatrixOperator(matrices, psd=True), torch.randn(count, n, generator=generator, dtype=torch.float64)


def test_solves_with_a_shift_per_sample() -> None:
    operator, rhs = problem()
    shift = torch.tensor([0.5, 5.0, 50.0], dtype=torch.float64)
    found, image, _ = truncated_cg(operator, rhs, shift, torch.full_like(shift, 1e-12), 500)
    for index in range(3):
        matrix = operator.matrices[index] + shift[index] * torch.eye(12, dtype=torch.float64)
        assert torch.allclose(found[index], torch.linalg.solve(matrix, rhs[index]), rtol=1e-8)
        assert torch.allclose(image[index], matrix @ found[index], rtol=1e-8, atol=1e-10)


def test_the_residual_meets_each_samples_own_forcing() -> None:
    operator, rhs = problem()
    forcing = torch.tensor([0.5, 1e-2, 1e-6], dtype=torch.float64)
    _, image, _ = truncated_cg(operator, rhs, torch.ones(3, dtype=torch.float64), forcing, 500)
    residuals = (rhs - image).norm(dim=-1) / rhs.norm(dim=-1)
    assert bool((residuals <= forcing * (1 + 1e-9)).all())
    # And no sample goes on when it needn't: the loosest stops far from the tightest.
    assert float(residuals[0]) > 1e-3


def test_every_truncation_is_a_descent_direction() -> None:
    operator, rhs = problem(spread=8.0)
    zero = torch.zeros(3, dtype=torch.float64)
    values = []
    for products in range(1, 6):
        found, image, _ = truncated_cg(operator, rhs, zero, torch.full_like(zero, 1e-15), products)
        assert bool(((found * rhs).sum(-1) > 0).all())
        values.append((0.5 * (found * image).sum(-1) - (found * rhs).sum(-1)).tolist())
    for before, after in itertools.pairwise(values):
        assert all(later < earlier for earlier, later in zip(before, after, strict=True))


def test_zero_right_hand_side_and_null_space() -> None:
    operator = MatrixOperator(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)).expand(2, 2, 2), psd=True)
    rhs = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    zero, forcing = torch.zeros(2, dtype=torch.float64), torch.full((2,), 1e-9, dtype=torch.float64)
    found, image, products = truncated_cg(operator, rhs, zero, forcing, 10)
    assert not found.any()
    assert not image.any()
    assert products.tolist() == [0, 1]


def test_a_preconditioner_changes_the_way_and_not_the_end() -> None:
    operator, rhs = problem(n=60, spread=5.0)
    shift, forcing = torch.ones(3, dtype=torch.float64), torch.full((3,), 1e-9, dtype=torch.float64)
    eye = torch.eye(60, dtype=torch.float64)
    near = torch.linalg.cholesky(1.1 * operator.matrices + 10 * eye)
    plain, _, many = truncated_cg(operator, rhs, shift, forcing, 2000)
    found, image, few = truncated_cg(
        operator, rhs, shift, forcing, 2000, lambda residual: torch.cholesky_solve(residual[..., None], near)[..., 0]
    )
    assert torch.allclose(image, operator.matvec(found) + shift[:, None] * found)
    assert bool(((rhs - image).norm(dim=-1) <= 1e-9 * rhs.norm(dim=-1)).all())
    assert torch.allclose(found, plain, rtol=1e-4, atol=1e-6 * float(plain.abs().max()))
    assert int(few.max()) * 3 < int(many.min())
