"""The Krylov space itself: orthonormal, exhausted when it should be, and read off right after a downdate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.eigenvalue_solver import SPECTRA, stack, starts
from oracles import random_spectrum_matrix

from riskaudit.linalg import LanczosProcess
from riskaudit.linalg.lanczos import largest_error


def advanced(matrices: list[np.ndarray], steps: int) -> LanczosProcess:
    operator = stack(matrices)
    process = LanczosProcess(operator, starts(operator.num_samples, operator.shape[1]))
    for _ in range(steps):
        process.advance()
    return process


@pytest.mark.parametrize("kind", ["uniform", "geometric", "one-large"])
def test_basis_is_orthonormal(kind: str) -> None:
    rng = np.random.default_rng(0)
    process = advanced([random_spectrum_matrix(SPECTRA[kind](rng, 60), rng) for _ in range(3)], 40)
    for basis, used in zip(process.basis.numpy(), process.num_products.tolist(), strict=True):
        valid = basis[:used]
        assert used > 10
        assert np.abs(valid @ valid.T - np.eye(used)).max() < 1e-12


def test_relation_of_lanczos() -> None:
    """H Q = Q T + beta_k q_{k+1} e_k^T."""
    rng = np.random.default_rng(1)
    H = random_spectrum_matrix(rng.uniform(0, 1, 30), rng)
    process = advanced([H], 8)
    Q, following = process.basis[0, :-1].numpy().T, process.basis[0, -1].numpy()
    T = process.projected()[0].numpy()
    rest = np.zeros((30, 8))
    rest[:, -1] = float(process.off_diagonal[0, -1]) * following
    np.testing.assert_allclose(H @ Q, Q @ T + rest, atol=1e-13)
    np.testing.assert_allclose(T, Q.T @ H @ Q, atol=1e-13)


def test_ritz_pairs_and_their_residuals() -> None:
    rng = np.random.default_rng(2)
    H = random_spectrum_matrix(rng.uniform(0, 1, 30), rng)
    process = advanced([H], 8)
    pairs, Q = process.ritz(), process.basis[0, :-1].numpy().T
    for value, z, residual in zip(pairs.values[0], pairs.vectors[0].numpy().T, pairs.residuals[0], strict=True):
        y = Q @ z
        assert float(residual) == pytest.approx(np.linalg.norm(H @ y - float(value) * y), abs=1e-12)


def test_downdated_pairs_are_those_of_the_dense_projection() -> None:
    rng = np.random.default_rng(3)
    matrices = [random_spectrum_matrix(rng.uniform(0, 1, 30), rng) for _ in range(3)]
    v = 0.3 * rng.standard_normal((3, 30))
    process = advanced(matrices, 9)
    pairs = process.ritz_after_downdate(torch.from_numpy(v))
    for sample, H in enumerate(matrices):
        D = H - np.outer(v[sample], v[sample])
        Q = process.basis[sample, :-1].numpy().T
        np.testing.assert_allclose(pairs.values[sample], np.linalg.eigvalsh(Q.T @ D @ Q), atol=1e-12)
        for index in range(9):
            y, value = Q @ pairs.vectors[sample, :, index].numpy(), float(pairs.values[sample, index])
            assert float(pairs.residuals[sample, index]) == pytest.approx(np.linalg.norm(D @ y - value * y), abs=1e-12)


def test_exhausted_space_stays_right_while_others_go_on() -> None:
    rng = np.random.default_rng(4)
    low_rank = random_spectrum_matrix(np.array([4.0, 2.0] + [0.0] * 28), rng)
    process = advanced([low_rank, random_spectrum_matrix(rng.uniform(0, 1, 30), rng)], 12)
    assert process.num_products.tolist() == [3, 12]
    assert process.exhausted.tolist() == [True, False]
    values = process.ritz().values[0]
    assert values[-1] == pytest.approx(4, rel=1e-12)
    # Padded steps may not leave the spectrum.
    assert values.min() > -1e-12


def test_whole_space_is_exhausted() -> None:
    rng = np.random.default_rng(5)
    spectrum = np.sort(rng.uniform(0, 1, 7))
    process = advanced([random_spectrum_matrix(spectrum, rng)], 7)
    assert process.exhausted.tolist() == [True]
    np.testing.assert_allclose(process.ritz().values[0], spectrum, rtol=1e-10)
    assert process.shortfall(1e-4).tolist() == [0]


def test_padded_steps_stay_out_of_the_downdated_pairs() -> None:
    """H = 4 b b^T and v nearly 2 b: what v v^T leaves is far below every Rayleigh quotient of H."""
    rng = np.random.default_rng(6)
    b = rng.standard_normal(30)
    b /= np.linalg.norm(b)
    H, v = 4 * np.outer(b, b), 1.9999999 * b
    process = advanced([H, random_spectrum_matrix(rng.uniform(0, 1, 30), rng)], 10)
    assert process.num_products.tolist() == [2, 10]
    pairs = process.ritz_after_downdate(torch.from_numpy(np.stack([v, np.zeros(30)])))
    truth = 4 - 1.9999999**2
    assert float(pairs.values[0, -1]) == pytest.approx(truth, rel=1e-6)
    assert float(largest_error(pairs)[0]) < 1e-12


def test_a_padded_step_never_claims_to_have_converged() -> None:
    """H = I is exhausted after one product, which says nothing of I - v v^T outside it."""
    rng = np.random.default_rng(7)
    v = 0.2 * rng.standard_normal(30)
    process = advanced([np.eye(30), random_spectrum_matrix(rng.uniform(0, 1, 30), rng)], 10)
    assert process.num_products.tolist() == [1, 10]
    pairs = process.ritz_after_downdate(torch.from_numpy(np.stack([v, np.zeros(30)])))
    assert float(pairs.values[0, -1]) <= 1
    assert float(largest_error(pairs)[0]) > 1e-6
