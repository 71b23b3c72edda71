"""Krylov spaces: orthonormal, each of its own length, and read off right after a downdate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contracts.eigenvalue_solver import SPECTRA, stack, starts
from oracles import random_spectrum_matrix
from recording_operator import RecordingOperator

from riskaudit.linalg import KrylovSpace, Lanczos, MatrixOperator, lanczos


def never(_: int, __: object) -> bool:
    return False


def spaces_of(matrices: list[np.ndarray], steps: int) -> list[KrylovSpace]:
    operator = stack(matrices)
    return lanczos(operator, starts(operator.num_samples, operator.shape[1]), never, steps)


@pytest.mark.parametrize("kind", ["uniform", "geometric", "one-large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_basis_is_orthonormal(kind: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    matrices = stack([random_spectrum_matrix(SPECTRA[kind](rng, 60), rng) for _ in range(3)]).matrices.to(dtype)
    for space in lanczos(MatrixOperator(matrices, psd=True), starts(3, 60).to(dtype), never, 40):
        used, basis = space.tridiagonal.num_products, space.basis.double().numpy()
        assert used > 10
        assert len(basis) == used + (0 if space.tridiagonal.exhausted else 1)
        assert np.abs(basis @ basis.T - np.eye(len(basis))).max() < 100 * torch.finfo(dtype).eps


def test_relation_of_lanczos() -> None:
    """H Q = Q T + beta_k q_{k+1} e_k^T."""
    rng = np.random.default_rng(1)
    H = random_spectrum_matrix(rng.uniform(0, 1, 30), rng)
    (space,) = spaces_of([H], 8)
    Q, following = space.basis[:-1].numpy().T, space.basis[-1].numpy()
    alpha, beta = space.tridiagonal.diagonal, space.tridiagonal.off_diagonal
    T = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    rest = np.zeros((30, 8))
    rest[:, -1] = beta[-1] * following
    np.testing.assert_allclose(H @ Q, Q @ T + rest, atol=1e-13)
    np.testing.assert_allclose(T, Q.T @ H @ Q, atol=1e-13)


def test_ritz_pairs_and_their_residuals() -> None:
    rng = np.random.default_rng(2)
    H = random_spectrum_matrix(rng.uniform(0, 1, 30), rng)
    (space,) = spaces_of([H], 8)
    values, _, residuals = space.tridiagonal.ritz()
    Y = space.ritz_vectors(list(range(8))).numpy()
    np.testing.assert_allclose(Y @ Y.T, np.eye(8), atol=1e-13)
    for y, value, residual in zip(Y, values, residuals, strict=True):
        assert residual == pytest.approx(np.linalg.norm(H @ y - value * y), abs=1e-12)
    np.testing.assert_allclose(space.ritz_vectors([7, 2]).numpy(), Y[[7, 2]], atol=1e-15)


def test_exhausted_space_leaves_while_others_go_on() -> None:
    rng = np.random.default_rng(4)
    low_rank = random_spectrum_matrix(np.array([4.0, 2.0] + [0.0] * 28), rng)
    short, long = spaces_of([low_rank, random_spectrum_matrix(rng.uniform(0, 1, 30), rng)], 12)
    assert (short.tridiagonal.num_products, long.tridiagonal.num_products) == (3, 12)
    assert (short.tridiagonal.exhausted, long.tridiagonal.exhausted) == (True, False)
    np.testing.assert_allclose(short.tridiagonal.ritz().values, [0, 2, 4], atol=1e-12)
    assert short.tridiagonal.ritz().residuals.tolist() == [0, 0, 0]


def test_whole_space_is_exhausted() -> None:
    rng = np.random.default_rng(5)
    spectrum = np.sort(rng.uniform(0, 1, 7))
    (space,) = spaces_of([random_spectrum_matrix(spectrum, rng)], 20)
    assert space.tridiagonal.exhausted
    assert space.tridiagonal.num_products == 7
    np.testing.assert_allclose(space.tridiagonal.ritz().values, spectrum, rtol=1e-10)


def test_zero_start_vector_has_a_space_without_products() -> None:
    rng = np.random.default_rng(8)
    operator = stack([random_spectrum_matrix(rng.uniform(0, 1, 6), rng)] * 2)
    start = starts(2, 6)
    start[0] = 0
    zero, other = lanczos(operator, start, never, 4)
    assert (zero.tridiagonal.num_products, zero.tridiagonal.start_norm) == (0, 0)
    assert zero.tridiagonal.exhausted
    assert zero.tridiagonal.diagonal.tolist() == [0]
    assert other.tridiagonal.num_products == 4
    assert other.tridiagonal.start_norm == pytest.approx(float(start[1].norm()), rel=1e-14)
    assert torch.isfinite(other.basis).all()


def test_finished_samples_leave_by_halves_and_stop_counting() -> None:
    rng = np.random.default_rng(9)
    operator = RecordingOperator(stack([random_spectrum_matrix(rng.uniform(0, 1, 40), rng) for _ in range(8)]))
    wanted = [20, 1, 2, 3, 3, 5, 6, 7]
    asked: list[int] = []

    def finished(index: int, space: KrylovSpace) -> bool:
        asked.append(index)
        return space.tridiagonal.num_products == wanted[index]

    start = starts(8, 40)
    spaces = lanczos(operator, start, finished, 30)
    assert [space.tridiagonal.num_products for space in spaces] == wanted
    assert [asked.count(index) for index in range(8)] == wanted
    # Active before each product: 8, 7, 6, 4, 4, 3, 2, 1, ..., 1; narrowed at 4, at 2 and at 1 of them.
    assert operator.held == [8, 8, 8, 4, 4, 4, 2] + [1] * 13
    for index, space in enumerate(spaces):
        (alone,) = lanczos(operator.operator.select([index]), start[index : index + 1], never, wanted[index])
        np.testing.assert_allclose(space.tridiagonal.diagonal, alone.tridiagonal.diagonal, rtol=1e-11)
        np.testing.assert_allclose(space.tridiagonal.off_diagonal, alone.tridiagonal.off_diagonal, rtol=1e-10)
        np.testing.assert_allclose(space.basis, alone.basis, atol=1e-10)


@pytest.mark.parametrize("allowed", [0, 1, 5])
def test_deadline_ends_with_what_is_there(allowed: int) -> None:
    rng = np.random.default_rng(10)
    operator = RecordingOperator(stack([random_spectrum_matrix(rng.uniform(0, 1, 40), rng) for _ in range(2)]))
    spaces = lanczos(operator, starts(2, 40), never, 30, lambda: len(operator.held) >= allowed)
    assert operator.held == [2] * allowed
    for space in spaces:
        assert space.tridiagonal.num_products == len(space.tridiagonal.ritz().values) == allowed
        assert space.basis.shape == (allowed + 1, 40)


def test_solver_without_a_product_claims_nothing() -> None:
    solution = Lanczos(deadline=lambda: True).solve(stack([np.eye(5)]), starts(1, 5))
    assert solution.status == ("not_converged",)
    assert (solution.low.tolist(), solution.high.tolist(), solution.matvecs.tolist()) == ([0], [math.inf], [0])


def test_precision_asks_for_a_near_upper_end_too() -> None:
    rng = np.random.default_rng(11)
    values = np.concatenate([[1.0, 0.6], rng.uniform(0, 0.5, 78)])
    operator = stack([random_spectrum_matrix(values, rng)])
    coarse = Lanczos(1e-3, 60, 1e-6).solve(operator, starts(1, 80))
    fine = Lanczos(1e-3, 60, 1e-6, precision=1e-3).solve(operator, starts(1, 80))
    assert coarse.status == fine.status == ("converged",)
    assert coarse.high[0] > 1.001 * coarse.value[0]
    assert fine.high[0] <= 1.001 * fine.value[0]
    assert coarse.matvecs[0] < fine.matvecs[0] < 60
