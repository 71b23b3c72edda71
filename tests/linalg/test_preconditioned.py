"""Preconditioned solves: the least eigenvalue and both ends of solutions hold, against dense float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.eigenvalue_solver import stack, starts
from oracles import random_spectrum_matrix

from riskaudit.linalg import (
    KrylovSpace,
    LinearOperator,
    MatrixOperator,
    PreconditionedOperator,
    RitzPreconditioner,
    inverse_forms,
    lanczos,
    least_solution_norm,
)

N, COUNT = 60, 4
SPECTRA = {
    "decades": np.logspace(3, -5, N),
    "null-space": np.concatenate([np.logspace(2, -1, 20), np.zeros(N - 20)]),
    "flat": np.linspace(1, 2, N),
    "one-large": np.concatenate([[1e4], np.full(N - 1, 0.5)]),
}


def never(*_: object) -> bool:
    return False


def matrices(kind: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [random_spectrum_matrix(SPECTRA[kind], rng) for _ in range(COUNT)]


def preconditioned(
    operator: MatrixOperator, depth: int, shift: float
) -> tuple[RitzPreconditioner, LinearOperator, list[KrylovSpace]]:
    spaces = lanczos(operator, starts(COUNT, N).to(operator.dtype), never, depth)
    scales = [space.tridiagonal.largest for space in spaces]
    shifts = [shift] * COUNT
    like = torch.zeros(COUNT, N, dtype=operator.dtype)
    preconditioner = RitzPreconditioner(spaces, shifts, scales, like)
    return preconditioner, PreconditionedOperator(operator, preconditioner, shifts, list(range(COUNT))), spaces


def dense(operator: LinearOperator) -> np.ndarray:
    return operator.matmat(torch.eye(N, dtype=operator.dtype).expand(COUNT, N, N)).double().numpy()


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("shift", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("depth", [0, 4, 16])
def test_the_least_eigenvalue_is_a_lower_end_and_not_far_off(kind, shift, depth) -> None:
    preconditioner, operator, _ = preconditioned(stack(matrices(kind)), depth, shift)
    for matrix, least in zip(dense(operator), preconditioner.least, strict=True):
        true = float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[0])
        assert 0 < least <= true * (1 + 1e-9)


@pytest.mark.parametrize("kind", SPECTRA)
def test_the_operator_is_p_to_the_minus_half_times_that_with_the_shift(kind) -> None:
    given = matrices(kind)
    preconditioner, operator, _ = preconditioned(stack(given), 8, 0.1)
    eye = torch.eye(N, dtype=torch.float64).expand(COUNT, N, N)
    halves, wholes = preconditioner.power(eye, -0.5).numpy(), preconditioner.power(eye, -1.0).numpy()
    for matrix, half, whole, found in zip(given, halves, wholes, dense(operator), strict=True):
        np.testing.assert_allclose(half @ half, whole, atol=1e-10 * np.abs(whole).max())
        expected = half @ (matrix + 0.1 * np.eye(N)) @ half
        np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())
    picked = operator.select([2, 0])
    columns = starts(2, N).unsqueeze(-1)
    one, alone = picked.matmat(columns)[1], operator.select([0]).matmat(columns[1:])[0]
    np.testing.assert_allclose(one, alone, atol=1e-10 * float(alone.abs().max()))


def test_it_has_less_spread_than_the_plain_operator() -> None:
    given = matrices("decades")
    _, operator, _ = preconditioned(stack(given), 16, 1e-2)
    for matrix, found in zip(given, dense(operator), strict=True):
        plain, better = (np.linalg.cond(each) for each in (matrix + 1e-2 * np.eye(N), found))
        assert better < plain / 20


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_energies_and_norms_lie_between_their_ends(kind, dtype) -> None:
    shift, given = 0.05, matrices(kind)
    preconditioner, operator, _ = preconditioned(MatrixOperator(stack(given).matrices.to(dtype), psd=True), 12, shift)
    rhs = starts(COUNT, N, seed=7).to(dtype)
    begin = preconditioner.power(rhs.unsqueeze(-1), -0.5).squeeze(-1)
    for products in (2, 6, 12, 30):
        for row, space in enumerate(lanczos(operator, begin, never, products)):
            matrix, b = given[row] + shift * np.eye(N), rhs[row].double().numpy()
            energy = float(b @ np.linalg.solve(matrix, b))
            least, scale = preconditioner.least[row], preconditioner.scales[row]
            forms = inverse_forms(space.tridiagonal, 0.0, least, scale)
            assert forms.first_low <= energy * (1 + 1e-5)
            assert forms.first_high >= energy * (1 - 1e-5)
            if dtype == torch.float64 and products == 30:
                assert forms.first_high <= 1.2 * forms.first_low


@pytest.mark.parametrize("kind", ["decades", "flat"])
def test_a_lower_end_of_a_solution_needs_no_product(kind) -> None:
    given = matrices(kind)
    spaces = lanczos(stack(given), starts(COUNT, N), never, 24)
    rhs = starts(COUNT, N, seed=8)
    for matrix, space, b in zip(given, spaces, rhs, strict=True):
        count = space.tridiagonal.num_products
        low = least_solution_norm(space.tridiagonal, (space.basis[:count] @ b).numpy(), space.tridiagonal.slack())
        true = float(np.linalg.norm(np.linalg.solve(matrix, b.numpy())))
        assert 0 < low <= true
        # The best of the space, which none of its vectors beats.
        basis = space.basis[:count].numpy()
        for vector in np.random.default_rng(1).normal(size=(20, count)) @ basis:
            assert abs(vector @ b.numpy()) / np.linalg.norm(matrix @ vector) <= low * (1 + 1e-6)


def test_nothing_is_known_without_a_product_or_of_no_start() -> None:
    (space,) = lanczos(stack([np.eye(5)]), starts(1, 5), never, 0)
    assert least_solution_norm(space.tridiagonal, np.zeros(0), 0.0) == 0
    (space,) = lanczos(stack([np.diag([1.0, 2, 3, 4, 5])]), starts(1, 5), never, 3)
    assert least_solution_norm(space.tridiagonal, np.zeros(3), 0.0) == 0
