"""Dense, Lanczos and power iteration against spectra that are known because they were chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.eigenvalue_solver import EigenvalueSolverContract, starts
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import random_spectrum_matrix

from riskaudit.errors import SettingsError
from riskaudit.linalg import (
    EIGENVALUE_SOLVERS,
    Dense,
    EigenvalueSolver,
    GramOperator,
    Lanczos,
    MatrixOperator,
    Power,
    Spectrum,
)
from riskaudit.linalg.solvers import dense
from riskaudit.linalg.solvers.eigenvalues import power_shortfall, register_eigenvalue_solver


class TestDense(EigenvalueSolverContract):
    one_iteration_certifies = True

    def solver(self, *, max_matvecs: int = 100, failure: float = 1e-2) -> EigenvalueSolver:
        return Dense()


class TestLanczos(EigenvalueSolverContract):
    def solver(self, *, max_matvecs: int = 100, failure: float = 1e-2) -> EigenvalueSolver:
        return Lanczos(1e-6, max_matvecs, failure)

    def test_space_of_low_rank_is_exhausted(self) -> None:
        rng = np.random.default_rng(5)
        values = np.array([5.0, 2.0, 1.0] + [0.0] * 17)
        solution = self.solve([random_spectrum_matrix(values, rng)])
        assert solution.matvecs.tolist() == [4]
        assert solution.status == ("converged",)
        assert solution.value[0] == pytest.approx(5, rel=1e-12)
        assert solution.value[0] <= solution.high[0] <= solution.value[0] * (1 + 1e-13)


class TestPower(EigenvalueSolverContract):
    def solver(self, *, max_matvecs: int = 100, failure: float = 1e-2) -> EigenvalueSolver:
        return Power(1e-6, max_matvecs, failure)


def test_every_solver_has_a_contract() -> None:
    assert set(EIGENVALUE_SOLVERS.values()) == {Dense, Lanczos, Power}


def test_registering_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match="'power' is registered twice"):
        register_eigenvalue_solver("power")(Power)


@settings(max_examples=60, deadline=None)
@given(
    logarithms=st.lists(st.floats(-6, 6), min_size=2, max_size=15),
    seed=st.integers(0, 2**16),
    max_matvecs=st.integers(1, 20),
)
def test_lanczos_interval_for_any_spectrum(logarithms: list[float], seed: int, max_matvecs: int) -> None:
    values = 10.0 ** np.array(logarithms)
    matrix = random_spectrum_matrix(values, np.random.default_rng(seed))
    operator = MatrixOperator(torch.from_numpy(matrix[None]), psd=True)
    # At failure 1e-9 no example of this test may ever miss.
    solution = Lanczos(1e-6, max_matvecs, 1e-9).solve(operator, starts(1, len(values), seed))
    assert solution.low[0] <= values.max() * (1 + 1e-12)
    assert solution.high[0] >= values.max() * (1 - 1e-12)


def test_certified_shortfall_by_hand() -> None:
    # Kuczynski and Wozniakowski 1992: n = 100, 10 products, failure 1 %.
    e = power_shortfall(10, 100, 0.01)
    assert 0.824 * 10 * (1 - e) ** 9.5 == pytest.approx(0.01)
    assert power_shortfall(0, 100, 0.01) == 1


def test_lanczos_needs_a_third_of_the_products_of_power() -> None:
    matrix = random_spectrum_matrix(0.9 ** np.arange(60), np.random.default_rng(0))
    operator = MatrixOperator(torch.from_numpy(matrix[None]), psd=True)
    quick = Lanczos(1e-6, 500, 1e-2).solve(operator, starts(1, 60))
    slow = Power(1e-6, 500, 1e-2).solve(operator, starts(1, 60))
    assert (quick.status, slow.status) == (("converged",), ("converged",))
    assert 3 * quick.matvecs[0] < slow.matvecs[0]


def test_converged_samples_stop_counting_in_power_iteration() -> None:
    operator = MatrixOperator(
        torch.diag_embed(torch.tensor([[1.0, 0, 0], [1.0, 0.99, 0]], dtype=torch.float64)), psd=True
    )
    solution = Power(1e-6, 50, 1e-2).solve(operator, starts(2, 3))
    assert solution.status == ("converged", "not_converged")
    assert solution.matvecs[0] <= 3
    assert solution.matvecs[1] == 50


def test_spectrum_is_that_of_numpy() -> None:
    J = np.random.default_rng(6).standard_normal((2, 9, 5))
    spectrum = Spectrum.of(GramOperator(MatrixOperator(torch.from_numpy(J))))
    for sample in range(2):
        np.testing.assert_allclose(
            spectrum.values[sample], np.linalg.svd(J[sample], compute_uv=False)[::-1] ** 2, rtol=1e-12
        )
        H = spectrum.vectors[sample] @ torch.diag(spectrum.values[sample]) @ spectrum.vectors[sample].T
        np.testing.assert_allclose(H, J[sample].T @ J[sample], atol=1e-12)
    assert spectrum.rank.tolist() == [5, 5]
    assert spectrum.matvecs == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("limit", [2**40, 1], ids=["jacobian-held", "jacobian-too-large"])
def test_rank_is_told_from_rounding(dtype: torch.dtype, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """H of a rank-3 J: in float32 the columns of H carry far more rounding than H squared from J does."""
    monkeypatch.setattr(dense, "JACOBIAN_BYTES", limit)
    rng = np.random.default_rng(9)
    J = rng.standard_normal((4, 40, 3)) @ rng.standard_normal((4, 3, 12))
    spectrum = Spectrum.of(GramOperator(MatrixOperator(torch.from_numpy(J).to(dtype))))
    assert spectrum.rank.tolist() == [3] * 4


def test_blocks_of_columns_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = GramOperator(MatrixOperator(torch.randn(1, 9, 5, dtype=torch.float64)))
    whole = Spectrum.of(operator).values
    monkeypatch.setattr(dense, "COLUMN_BLOCK_ENTRIES", 18)
    torch.testing.assert_close(Spectrum.of(operator).values, whole, rtol=1e-12, atol=0)
