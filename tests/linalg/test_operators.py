"""The operators of linalg against explicit matrices, and that each has a contract."""

from __future__ import annotations

from inspect import isabstract
from typing import ClassVar

import pytest
import torch
from contracts.linear_operator import LinearOperatorContract, normal
from oracles import Array

from riskaudit.linalg import GramOperator, LinearOperator, MatrixOperator
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


def test_every_operator_has_a_contract() -> None:
    # Those of Jacobians are in tests/jacobian.
    known = {
        case.covers for case in (TestMatrixOperator, TestGramOperator, TestDowndatedOperator, TestRepeatedOperator)
    }
    own = {cls for cls in LinearOperator.__subclasses__() if cls.__module__.startswith("riskaudit.linalg.")}
    assert {cls for cls in own if not isabstract(cls)} == known


def test_identity_columns_read_off_the_matrix() -> None:
    operator = MatrixOperator(normal(2, 5, 3))
    torch.testing.assert_close(operator.matmat(identity_columns(operator)), operator.matrices)
