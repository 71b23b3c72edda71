"""(H + shift)^-1 b four ways, against numpy and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contracts.inverse_solver import InverseSolverContract, solve
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import random_spectrum_matrix, relative_difference
from recording_operator import RecordingOperator

from riskaudit.errors import SettingsError
from riskaudit.linalg import (
    INVERSE_SOLVERS,
    ConjugateGradient,
    DenseInverse,
    InverseSolver,
    LeastSquares,
    MatrixOperator,
    Neumann,
)
from riskaudit.linalg.solvers.inverses import register_inverse_solver, relative_error_bound


class TestConjugateGradient(InverseSolverContract):
    def solver(self, *, tolerance: float = 1e-9, max_matvecs: int = 5000) -> InverseSolver:
        return ConjugateGradient(tolerance, max_matvecs)


class TestNeumann(InverseSolverContract):
    def solver(self, *, tolerance: float = 1e-9, max_matvecs: int = 5000) -> InverseSolver:
        return Neumann(tolerance, max_matvecs)


class TestLeastSquares(InverseSolverContract):
    def solver(self, *, tolerance: float = 1e-9, max_matvecs: int = 5000) -> InverseSolver:
        return LeastSquares(tolerance, max_matvecs)


class TestDenseInverse(InverseSolverContract):
    iterative = False

    def solver(self, *, tolerance: float = 1e-9, max_matvecs: int = 5000) -> InverseSolver:
        return DenseInverse()


def test_every_inverse_has_a_contract() -> None:
    assert set(INVERSE_SOLVERS.values()) == {ConjugateGradient, Neumann, LeastSquares, DenseInverse}


def test_registering_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match="'cg' is registered twice"):
        register_inverse_solver("cg")(ConjugateGradient)


@pytest.mark.parametrize("shift", [0.0, 1e-3])
def test_all_agree_where_they_report_converged(shift: float) -> None:
    rng = np.random.default_rng(0)
    matrices = [random_spectrum_matrix(np.geomspace(low, 1, 20), rng) for low in (0.5, 0.05, 1e-4)]
    rhs = rng.standard_normal((3, 20))
    reference = solve(DenseInverse(), matrices, rhs, shift)
    converged = 0
    for solver in (ConjugateGradient(1e-8), Neumann(1e-8), LeastSquares(1e-8)):
        solution = solve(solver, matrices, rhs, shift)
        assert solution.status[0] == "converged"
        for sample, status in enumerate(solution.status):
            if status == "converged":
                converged += 1
                assert relative_difference(solution.value[sample], reference.value[sample]) < 1e-6
    assert converged >= 6


@pytest.mark.parametrize("solver", [Neumann(1e-8, 3000, step=10.0), LeastSquares(1e-8, 3000, step=10.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_divergent_step_ends_as_not_converged(solver: InverseSolver, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    matrices = np.stack([random_spectrum_matrix(rng.uniform(0.5, 3, 8), rng)] * 2)
    operator = MatrixOperator(torch.from_numpy(matrices).to(dtype), psd=True)
    rhs = torch.from_numpy(rng.standard_normal((2, 8))).to(dtype)
    shift, largest = torch.tensor([0.0, 0.1]).double(), torch.tensor([3.0, 3.0]).double()
    solution = solver.solve(operator, rhs, shift, largest)
    assert solution.status == ("not_converged", "not_converged")


def test_one_divergent_sample_leaves_the_other_alone() -> None:
    matrices = [np.diag([100.0, 50.0]), np.diag([1.0, 0.5])]
    solution = solve(Neumann(1e-8, 2000, step=1.0), matrices, np.ones((2, 2)), 0.01)
    assert solution.status == ("not_converged", "converged")
    assert relative_difference(solution.value[1], [1 / 1.01, 1 / 0.51]) < 1e-7


def test_conjugate_gradient_ends_after_as_many_products_as_eigenvalues() -> None:
    rng = np.random.default_rng(2)
    matrix = random_spectrum_matrix(np.array([5.0, 5, 5, 2, 2, 1, 1, 1]), rng)
    solution = solve(ConjugateGradient(1e-10), [matrix], rng.standard_normal((1, 8)), 0.5)
    assert solution.status == ("converged",)
    # Three distinct eigenvalues, one product more for rounding, one that checks the residual.
    assert solution.matvecs[0] <= 5


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("solver", [ConjugateGradient(1e-7, 2000), Neumann(1e-7, 2000)], ids=["cg", "neumann"])
def test_solves_without_a_shift_on_pulled_noise(solver: InverseSolver, seed: int) -> None:
    """b = J^T delta, as I2F has it: nothing is certified, but what is called converged should be right."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.standard_normal((30, 20)))
    right, _ = np.linalg.qr(rng.standard_normal((20, 20)))
    singular_values, noise = np.geomspace(10.0 ** -(seed % 3 + 1), 1, 20), rng.standard_normal(30)
    J = (left * singular_values) @ right.T
    solution = solve(solver, [J.T @ J], (J.T @ noise)[None], 0.0)
    expected = np.linalg.lstsq(J, noise, rcond=None)[0]
    if solution.status[0] == "converged":
        assert relative_difference(solution.value[0], expected) < 1e-4
    else:
        assert relative_difference(solution.value[0], expected) > 1e-8
    if isinstance(solver, ConjugateGradient):
        assert solution.status == ("converged",)


@pytest.mark.parametrize("kind", [ConjugateGradient, Neumann, LeastSquares])
@settings(max_examples=80, deadline=None)
@given(
    logarithms=st.lists(st.one_of(st.just(float("-inf")), st.floats(-6, 3)), min_size=1, max_size=12),
    log_shift=st.floats(-6, 2),
    seed=st.integers(0, 2**16),
    max_matvecs=st.integers(2, 150),
)
def test_never_claims_what_is_not_so(
    kind: type[ConjugateGradient | Neumann | LeastSquares],
    logarithms: list[float],
    log_shift: float,
    seed: int,
    max_matvecs: int,
) -> None:
    values, shift, rng = 10.0 ** np.array(logarithms), 10.0**log_shift, np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    b = rng.standard_normal((1, len(values)))
    solution = solve(kind(1e-6, max_matvecs), [(basis * values) @ basis.T], b, shift)
    truth = (basis / (values + shift)) @ basis.T @ b[0]
    norm = float(np.linalg.norm(truth))
    if solution.status[0] == "converged":
        assert relative_difference(solution.value[0], truth) <= 1e-5
    # Rounding of the product itself, amplified by the condition number.
    rounding = 1e-14 * (values.max() + shift) / shift * norm
    assert float(solution.low[0]) - rounding <= norm <= float(solution.high[0]) + rounding


def test_consistent_singular_system_gives_the_shortest_solution_uncertified() -> None:
    rng = np.random.default_rng(3)
    values = np.array([2.0, 1.5, 1.0, 0, 0, 0])
    basis, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    matrix = (basis * values) @ basis.T
    b = (matrix @ rng.standard_normal(6))[None]
    solution = solve(ConjugateGradient(1e-8), [matrix], b, 0.0)
    assert relative_difference(solution.value[0], np.linalg.pinv(matrix) @ b[0]) < 1e-6
    assert solution.high.tolist() == [math.inf]


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_residual_of_the_recurrence_is_not_believed(shift: float) -> None:
    """In float32 it falls below any tolerance, while the solution stays as wrong as float32 is."""
    rng = np.random.default_rng(4)
    matrix, b = random_spectrum_matrix(np.geomspace(0.01, 1, 20), rng), rng.standard_normal((1, 20))
    solution = ConjugateGradient(1e-11, 500).solve(
        MatrixOperator(torch.from_numpy(matrix[None]).float(), psd=True),
        torch.from_numpy(b).float(),
        torch.tensor([shift]).double(),
        torch.ones(1).double(),
    )
    assert solution.status == ("not_converged",)
    assert solution.matvecs[0] < 500
    assert solution.residual[0] > 1e-8


@pytest.mark.parametrize(
    "solver",
    [ConjugateGradient(1e-8, 3000), Neumann(1e-8, 3000), LeastSquares(1e-8, 6000)],
    ids=["cg", "neumann", "least-squares"],
)
def test_samples_leave_by_halves(solver: InverseSolver) -> None:
    """Narrowed at half, and every solution is that of the sample alone."""
    rng = np.random.default_rng(5)
    matrices = np.stack([random_spectrum_matrix(np.geomspace(low, 1, 12), rng) for low in (0.9, 0.95, 0.1, 0.8)])
    operator = RecordingOperator(MatrixOperator(torch.from_numpy(matrices), psd=True))
    rhs, shift = torch.from_numpy(rng.standard_normal((4, 12))), torch.full((4,), 0.01).double()
    solution = solver.solve(operator, rhs, shift, torch.ones(4).double())
    assert solution.status == ("converged",) * 4
    # All at first, the ill-conditioned one alone at last, and all once more for the residual.
    assert (operator.held[0], operator.held[-2], operator.held[-1]) == (4, 1, 4)
    assert operator.held[:-1] == sorted(operator.held[:-1], reverse=True)
    needed = (solution.matvecs - 1).sort(descending=True).values.tolist()
    assert len(operator.held) - 1 == needed[0]
    assert sum(operator.held[:-1]) <= 2 * sum(needed)
    for sample in range(4):
        own = [sample]
        alone = solver.solve(operator.operator.select(own), rhs[own], shift[own], torch.ones(1).double())
        assert relative_difference(alone.value[0], solution.value[sample]) < 1e-10
        assert alone.matvecs[0] == solution.matvecs[sample]


@pytest.mark.parametrize("kind", [ConjugateGradient, Neumann, LeastSquares])
def test_deadline_ends_a_solve_unconverged(kind: type[ConjugateGradient | Neumann | LeastSquares]) -> None:
    rng = np.random.default_rng(6)
    matrix = random_spectrum_matrix(np.geomspace(1e-3, 1, 30), rng)
    operator = RecordingOperator(MatrixOperator(torch.from_numpy(matrix[None]), psd=True))
    b, shift = torch.from_numpy(rng.standard_normal((1, 30))), torch.full((1,), 1e-3).double()
    solver = kind(1e-8, 3000, deadline=lambda: len(operator.held) >= 4)
    solution = solver.solve(operator, b, shift, torch.ones(1).double())
    assert solution.status == ("not_converged",)
    assert solution.matvecs.tolist() == [5]
    assert len(operator.held) == 5
    truth = float(np.linalg.norm(np.linalg.solve(matrix + 1e-3 * np.eye(30), b[0])))
    assert float(solution.low[0]) <= truth <= float(solution.high[0])


def test_relative_error_bound() -> None:
    residual = torch.tensor([1e-3, 0.0, 1e-3]).double()
    bound = relative_error_bound(residual, torch.tensor([2.0, 1, 1]).double(), torch.tensor([0.5, 0, 0]).double())
    assert bound.tolist() == pytest.approx([1e-3, 0, math.inf])
