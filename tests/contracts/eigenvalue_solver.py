"""What every `EigenvalueSolver` must do. Inherit, and give ``solver(failure=, max_matvecs=)``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import random_spectrum_matrix
from scipy.stats import binom

from riskaudit.linalg import EigenvalueSolver, MatrixOperator, Solution

SPECTRA: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "uniform": lambda rng, n: rng.uniform(0, 1, n),
    "geometric": lambda rng, n: 0.5 ** np.arange(n),
    "close-to-the-top": lambda rng, n: 1 - 1e-3 * rng.uniform(0, 1, n),
    "one-large": lambda rng, n: np.concatenate([[100.0], rng.uniform(0, 1, n - 1)]),
    "rank-deficient": lambda rng, n: np.concatenate([rng.uniform(0, 1, n // 2), np.zeros(n - n // 2)]),
}


def starts(samples: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stack(matrices: list[np.ndarray]) -> MatrixOperator:
    return MatrixOperator(torch.from_numpy(np.stack(matrices)), psd=True)


class EigenvalueSolverContract:
    one_iteration_certifies = False

    def solver(self, *, max_matvecs: int = 100, failure: float = 1e-2) -> EigenvalueSolver:
        raise NotImplementedError

    def solve(self, matrices: list[np.ndarray], **options) -> Solution:
        operator = stack(matrices)
        solution = self.solver(**options).solve(operator, starts(operator.num_samples, operator.shape[1]))
        samples = operator.num_samples
        assert solution.low is not None
        assert solution.high is not None
        assert len(solution.status) == samples
        for column in (solution.value, solution.low, solution.high, solution.residual, solution.matvecs):
            assert column.shape == (samples,)
        assert torch.isfinite(solution.value).all()
        assert torch.isfinite(solution.residual).all()
        assert (solution.low <= solution.high).all()
        return solution

    @pytest.mark.parametrize("kind", SPECTRA)
    @pytest.mark.parametrize("max_matvecs", [5, 12])
    def test_interval_holds_as_often_as_claimed(self, kind: str, max_matvecs: int) -> None:
        rng = np.random.default_rng(7)
        spectra = [SPECTRA[kind](rng, 20) for _ in range(300)]
        solution = self.solve(
            [random_spectrum_matrix(values, rng) for values in spectra], max_matvecs=max_matvecs, failure=1e-2
        )
        truth = torch.tensor([values.max() for values in spectra])
        assert (solution.value <= truth * (1 + 1e-12)).all()
        assert (solution.low <= truth * (1 + 1e-12)).all()
        assert torch.isfinite(solution.high).all()
        missed = (solution.high < truth * (1 - 1e-12)).sum()
        assert missed <= binom.ppf(0.9999, 300, 1e-2), f"{missed} of 300 upper ends lie below l_1"

    @pytest.mark.parametrize("kind", ["uniform", "geometric", "one-large"])
    def test_converged_value_is_an_eigenvalue(self, kind: str) -> None:
        rng = np.random.default_rng(8)
        spectra = [SPECTRA[kind](rng, 12) for _ in range(20)]
        solution = self.solve([random_spectrum_matrix(values, rng) for values in spectra], max_matvecs=2000)
        for values, value, status in zip(spectra, solution.value.tolist(), solution.status, strict=True):
            assert status in ("converged", "exact")
            assert min(abs(values - value)) <= 2e-6 * values.max()

    def test_zero_operator(self) -> None:
        solution = self.solve([np.zeros((6, 6))] * 2)
        assert solution.value.tolist() == [0, 0]
        assert solution.residual.tolist() == [0, 0]

    def test_rank_one(self) -> None:
        b = np.random.default_rng(1).standard_normal(9)
        solution = self.solve([np.outer(b, b)])
        assert solution.value[0] == pytest.approx(b @ b, rel=1e-10)
        assert solution.high[0] >= (b @ b) * (1 - 1e-12)
        assert solution.status[0] in ("converged", "exact")

    def test_one_by_one(self) -> None:
        solution = self.solve([np.array([[2.5]]), np.array([[0.0]])])
        assert solution.value.tolist() == [2.5, 0.0]

    def test_repeated_eigenvalues(self) -> None:
        rng = np.random.default_rng(2)
        solution = self.solve([random_spectrum_matrix(np.array([3.0, 3, 3, 1, 1, 0]), rng), 3 * np.eye(6)])
        assert solution.value.tolist() == pytest.approx([3, 3], rel=1e-10)
        assert (solution.high >= 3 * (1 - 1e-12)).all()

    def test_float32(self) -> None:
        rng = np.random.default_rng(3)
        spectra = [rng.uniform(0, 1, 30) for _ in range(10)]
        operator = stack([random_spectrum_matrix(values, rng) for values in spectra])
        single = MatrixOperator(operator.matrices.float(), psd=True)
        solution = self.solver(max_matvecs=200).solve(single, starts(10, 30).float())
        truth = torch.tensor([values.max() for values in spectra])
        assert (solution.value <= truth * (1 + 1e-5)).all()
        assert (solution.high >= truth * (1 - 1e-5)).all()
        assert ((truth - solution.value) <= 5e-2 * truth).all()

    def test_one_iteration(self) -> None:
        solution = self.solve([np.diag([4.0, 1.0, 0.5, 0.25])], max_matvecs=1, failure=1e-2)
        if self.one_iteration_certifies:
            assert solution.status == ("exact",)
            assert solution.value.tolist() == pytest.approx([4.0])
        else:
            assert solution.status == ("not_converged",)
            assert solution.matvecs.tolist() == [1]
            assert solution.high[0] > 4

    def test_samples_do_not_see_each_other(self) -> None:
        rng = np.random.default_rng(4)
        operator = stack([random_spectrum_matrix(0.3 ** np.arange(8), rng), np.diag(np.arange(8.0))])
        start = starts(2, 8)
        together = self.solver(max_matvecs=5).solve(operator, start)
        alone = self.solver(max_matvecs=5).solve(operator.select([1]), start[1:])
        assert alone.value[0] == pytest.approx(float(together.value[1]), rel=1e-12)
        assert alone.status[0] == together.status[1]
