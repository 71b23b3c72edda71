"""What every `InverseSolver` must do. Inherit, and give ``solver(tolerance=, max_matvecs=)``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import Array, random_spectrum_matrix, relative_difference

from riskaudit.linalg import InverseSolver, MatrixOperator, Solution


def solve(solver: InverseSolver, matrices: list[Array], rhs: Array, shift: float | list[float]) -> Solution:
    """Solve with the exact l_1 as its certified upper end."""
    operator = MatrixOperator(torch.from_numpy(np.stack(matrices)), psd=True)
    shifts = torch.tensor(np.broadcast_to(shift, len(matrices)).copy(), dtype=torch.float64)
    largest = torch.tensor([float(np.linalg.eigvalsh(matrix)[-1]) for matrix in matrices])
    solution = solver.solve(operator, torch.from_numpy(rhs), shifts, largest.double())
    assert solution.value.shape == rhs.shape
    for column in (solution.low, solution.high, solution.residual, solution.matvecs):
        assert column is not None
        assert column.shape == (len(matrices),)
    return solution


class InverseSolverContract:
    iterative = True

    def solver(self, *, tolerance: float = 1e-9, max_matvecs: int = 5000) -> InverseSolver:
        raise NotImplementedError

    def assert_solved(self, status: str) -> None:
        assert status == ("converged" if self.iterative else "exact")

    @pytest.mark.parametrize("shift", [0.0, 0.01, 10.0])
    def test_agrees_with_numpy_where_well_conditioned(self, shift: float) -> None:
        rng = np.random.default_rng(0)
        matrices = [random_spectrum_matrix(rng.uniform(0.7, 3, 15), rng) for _ in range(4)]
        rhs = rng.standard_normal((4, 15))
        solution = solve(self.solver(), matrices, rhs, shift)
        for sample, matrix in enumerate(matrices):
            self.assert_solved(solution.status[sample])
            expected = np.linalg.solve(matrix + shift * np.eye(15), rhs[sample])
            assert relative_difference(solution.value[sample], expected) < 1e-6
            assert solution.residual[sample] < 1e-6

    def test_shift_of_each_sample_is_its_own(self) -> None:
        rng = np.random.default_rng(1)
        matrix, b = random_spectrum_matrix(rng.uniform(0.5, 1, 6), rng), rng.standard_normal(6)
        solution = solve(self.solver(), [matrix, matrix], np.stack([b, b]), [0.5, 2.0])
        for sample, shift in enumerate((0.5, 2.0)):
            expected = np.linalg.solve(matrix + shift * np.eye(6), b)
            assert relative_difference(solution.value[sample], expected) < 1e-6

    def test_singular_matrix_with_a_shift(self) -> None:
        rng = np.random.default_rng(2)
        matrix, b = random_spectrum_matrix(np.array([2.0, 1.0, 0.5, 0, 0, 0]), rng), rng.standard_normal((1, 6))
        solution = solve(self.solver(), [matrix], b, 1.0)
        self.assert_solved(solution.status[0])
        expected = np.linalg.solve(matrix + np.eye(6), b[0])
        assert relative_difference(solution.value[0], expected) < 1e-6

    def test_singular_matrix_without_a_shift_is_never_certified(self) -> None:
        rng = np.random.default_rng(3)
        matrix, b = random_spectrum_matrix(np.array([2.0, 1.0, 0.5, 0, 0, 0]), rng), rng.standard_normal((1, 6))
        solution = solve(self.solver(max_matvecs=400), [matrix], b, 0.0)
        assert solution.status[0] == ("not_converged" if self.iterative else "singular")

    def test_interval_is_infinite_without_a_shift(self) -> None:
        if not self.iterative:
            pytest.skip("a direct inverse has no such interval")
        solution = solve(self.solver(), [np.eye(3)], np.ones((1, 3)), 0.0)
        assert solution.low.tolist() == [0]
        assert solution.high.tolist() == [float("inf")]

    @pytest.mark.parametrize("shift", [0.0, 0.3])
    def test_zero_right_hand_side(self, shift: float) -> None:
        solution = solve(self.solver(), [np.diag([1.0, 2.0])] * 2, np.array([[0.0, 0.0], [1.0, 1.0]]), shift)
        assert solution.value[0].tolist() == [0, 0]
        self.assert_solved(solution.status[0])
        self.assert_solved(solution.status[1])
        assert solution.residual[0] == 0

    def test_unconverged_says_so(self) -> None:
        if not self.iterative:
            pytest.skip("a direct inverse always arrives")
        rng = np.random.default_rng(4)
        matrix, b = random_spectrum_matrix(np.geomspace(1e-6, 1, 40), rng), rng.standard_normal((1, 40))
        solution = solve(self.solver(max_matvecs=6), [matrix], b, 1e-6)
        assert solution.status == ("not_converged",)
        assert solution.residual[0] > 1e-6
        assert solution.matvecs[0] <= 6 + 1
        truth = np.linalg.norm(np.linalg.solve(matrix + 1e-6 * np.eye(40), b[0]))
        assert float(solution.low[0]) <= truth <= float(solution.high[0])

    def test_one_by_one(self) -> None:
        solution = solve(self.solver(), [np.array([[4.0]])], np.array([[2.0]]), 1.0)
        assert solution.value[0, 0] == pytest.approx(0.4, rel=1e-8)

    def test_float32_is_as_good_as_it_says(self) -> None:
        rng = np.random.default_rng(5)
        matrix, b = random_spectrum_matrix(rng.uniform(0.5, 2, 10), rng), rng.standard_normal((1, 10))
        operator = MatrixOperator(torch.from_numpy(matrix[None]).float(), psd=True)
        shift, largest = torch.tensor([0.1]).double(), torch.tensor([2.0]).double()
        solver = self.solver(tolerance=1e-5, max_matvecs=2000)
        solution = solver.solve(operator, torch.from_numpy(b).float(), shift, largest)
        self.assert_solved(solution.status[0])
        expected = np.linalg.solve(matrix + 0.1 * np.eye(10), b[0])
        assert relative_difference(solution.value[0], expected) < 5e-5

    def test_samples_do_not_see_each_other(self) -> None:
        rng = np.random.default_rng(6)
        matrices = [random_spectrum_matrix(np.geomspace(low, 1, 8), rng) for low in (1e-4, 0.5)]
        rhs = rng.standard_normal((2, 8))
        together = solve(self.solver(), matrices, rhs, 0.01)
        alone = solve(self.solver(), matrices[1:], rhs[1:], 0.01)
        assert relative_difference(alone.value[0], together.value[1]) < 1e-12
        assert alone.matvecs[0] == together.matvecs[1]
