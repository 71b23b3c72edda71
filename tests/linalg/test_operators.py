"""The operators of linalg against explicit matrices, and that each has a contract."""

from __future__ import annotations

from inspect import isabstract
from typing import ClassVar

import numpy as np
import pytest
import torch
from contracts.linear_operator import LinearOperatorContract, normal
from oracles import Array

from riskaudit.linalg import (
    GramOperator,
    LinearOperator,
    MatrixOperator,
    MeasuredRounding,
    MixedPrecisionOperator,
    PreconditionedOperator,
    RitzPreconditioner,
    lanczos,
)
from riskaudit.linalg.krylov.preconditioned import REST_QUANTILE
from riskaudit.linalg.operators import DowndatedOperator, RepeatedOperator, identity_columns


class TestMatrixOperator(LinearOperatorContract):
    covers = MatrixOperator

    @pytest.fixture
    def operator(self) -> LinearOperator:
        return MatrixOperator(normal(3, 7, 4))

    @pytest.fixture
    def dense(self) -> Array:
        return normal(3, 7, 4).numpy()


class TestPsdMatrixOperator(LinearOperatorContract):
    covers = MatrixOperator
    psd = True

    @pytest.fixture
    def operator(self) -> LinearOperator:
        return MatrixOperator(normal(3, 7, 4).mT @ normal(3, 7, 4), psd=True)

    @pytest.fixture
    def dense(self) -> Array:
        return (normal(3, 7, 4).mT @ normal(3, 7, 4)).numpy()


class TestGramOperator(LinearOperatorContract):
    covers = GramOperator
    psd = True

    @pytest.fixture
    def operator(self) -> LinearOperator:
        return GramOperator(MatrixOperator(normal(3, 7, 4)))

    @pytest.fixture
    def dense(self) -> Array:
        J = normal(3, 7, 4).numpy()
        return J.transpose(0, 2, 1) @ J


class TestDowndatedOperator(LinearOperatorContract):
    covers = DowndatedOperator
    psd = True

    @staticmethod
    def vector() -> torch.Tensor:
        """J^T u for unit vectors u, so that J^T J - v v^T stays positive semidefinite."""
        u = normal(3, 7, seed=9)
        return torch.einsum("bmn,bm->bn", normal(3, 7, 4), u / u.norm(dim=1, keepdim=True))

    @pytest.fixture
    def operator(self) -> LinearOperator:
        return DowndatedOperator(GramOperator(MatrixOperator(normal(3, 7, 4))), self.vector())

    @pytest.fixture
    def dense(self) -> Array:
        J, v = normal(3, 7, 4).numpy(), self.vector().numpy()
        return J.transpose(0, 2, 1) @ J - v[:, :, None] * v[:, None, :]


class TestRepeatedOperator(LinearOperatorContract):
    covers = RepeatedOperator
    psd = True
    indices: ClassVar[list[int]] = [2, 0, 2, 1, 2]

    @pytest.fixture
    def operator(self) -> LinearOperator:
        return RepeatedOperator(GramOperator(MatrixOperator(normal(3, 7, 4))), self.indices)

    @pytest.fixture
    def dense(self) -> Array:
        J = normal(3, 7, 4).numpy()[self.indices]
        return J.transpose(0, 2, 1) @ J


class TestPreconditionedOperator(LinearOperatorContract):
    covers = PreconditionedOperator
    psd = True
    shifts: ClassVar[list[float]] = [0.5, 1.0, 2.0]

    @pytest.fixture
    def operator(self) -> LinearOperator:
        gram = GramOperator(MatrixOperator(normal(3, 7, 4)))
        start = normal(3, 4, 1, seed=5)[:, :, 0]
        spaces = lanczos(gram, start, lambda _, __: False, 2)
        scales = [space.tridiagonal.largest for space in spaces]
        preconditioner = RitzPreconditioner(spaces, self.shifts, scales, start)
        return PreconditionedOperator(gram, preconditioner, self.shifts, [0, 1, 2])

    @pytest.fixture
    def dense(self) -> Array:
        J, found = normal(3, 7, 4).numpy(), []
        for row, shift in enumerate(self.shifts):
            gram = MatrixOperator(torch.from_numpy(J[row].T @ J[row])[None], psd=True)
            (space,) = lanczos(gram, normal(3, 4, 1, seed=5)[row : row + 1, :, 0], lambda _, __: False, 2)
            values, vectors, _ = space.tridiagonal.ritz()
            Y = (vectors.T @ space.basis[:2].numpy()).T
            rest = np.quantile(values + shift, REST_QUANTILE)
            root = rest**-0.5 * (np.eye(4) - Y @ Y.T) + Y @ np.diag((values + shift) ** -0.5) @ Y.T
            found.append(root @ (J[row].T @ J[row] + shift * np.eye(4)) @ root)
        return np.stack(found)


class TestMixedPrecisionOperator(LinearOperatorContract):
    """Of so few coordinates that single precision is left with none of them; the others are in tests of their own."""

    covers = MixedPrecisionOperator
    psd = True

    @pytest.fixture
    def operator(self) -> LinearOperator:
        J = normal(3, 7, 4)
        double, single = (GramOperator(MatrixOperator(each)) for each in (J, J.float()))
        measured = MeasuredRounding.of(double, single, normal(3, 4, seed=1), normal(3, 4, seed=2))
        return MixedPrecisionOperator(double, single, measured, [True, False, True])

    @pytest.fixture
    def dense(self) -> Array:
        J = normal(3, 7, 4).numpy()
        return J.transpose(0, 2, 1) @ J


def test_every_operator_has_a_contract() -> None:
    # Those of Jacobians are in tests/jacobian.
    cases = (
        TestMatrixOperator,
        TestGramOperator,
        TestDowndatedOperator,
        TestRepeatedOperator,
        TestPreconditionedOperator,
        TestMixedPrecisionOperator,
    )
    known = {case.covers for case in cases}
    own = {cls for cls in LinearOperator.__subclasses__() if cls.__module__.startswith("riskaudit.linalg.")}
    assert {cls for cls in own if not isabstract(cls)} == known


def test_identity_columns_read_off_the_matrix() -> None:
    operator = MatrixOperator(normal(2, 5, 3))
    torch.testing.assert_close(operator.matmat(identity_columns(operator)), operator.matrices)
