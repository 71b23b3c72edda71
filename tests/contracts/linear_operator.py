"""What every `LinearOperator` must do. Inherit, and give ``operator`` and the matrices that it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import Array, relative_difference

from riskaudit.linalg import LinearOperator


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class LinearOperatorContract:
    covers: type[LinearOperator]
    psd = False

    @pytest.fixture
    def operator(self) -> LinearOperator:
        """At least two samples, float64."""
        raise NotImplementedError

    @pytest.fixture
    def dense(self, operator: LinearOperator) -> Array:
        """[B, m, n], from an oracle."""
        raise NotImplementedError

    def test_is_what_it_covers(self, operator: LinearOperator) -> None:
        assert type(operator) is self.covers

    def test_shapes(self, operator: LinearOperator) -> None:
        samples, (m, n) = operator.num_samples, operator.shape
        assert samples > 1
        assert operator.matvec(normal(samples, n)).shape == (samples, m)
        assert operator.rmatvec(normal(samples, m)).shape == (samples, n)
        assert operator.matmat(normal(samples, n, 3)).shape == (samples, m, 3)
        assert operator.rmatmat(normal(samples, m, 3)).shape == (samples, n, 3)
        assert operator.matvec(normal(samples, n)).dtype == operator.dtype

    def test_is_the_dense_matrix(self, operator: LinearOperator, dense: Array) -> None:
        samples, (m, n) = operator.num_samples, operator.shape
        assert dense.shape == (samples, m, n)
        v, u = normal(samples, n), normal(samples, m, seed=1)
        expected = np.einsum("bmn,bn->bm", dense, v.numpy())
        assert relative_difference(operator.matvec(v).detach(), expected) < 1e-10
        transposed = np.einsum("bmn,bm->bn", dense, u.numpy())
        assert relative_difference(operator.rmatvec(u).detach(), transposed) < 1e-10

    def test_adjoint_identity(self, operator: LinearOperator) -> None:
        samples, (m, n) = operator.num_samples, operator.shape
        v, u = normal(samples, n, seed=2), normal(samples, m, seed=3)
        product, pulled = operator.matvec(v).detach(), operator.rmatvec(u).detach()
        scale = product.norm(dim=1) * u.norm(dim=1)
        assert ((product * u).sum(1) - (v * pulled).sum(1)).abs().div(scale).max() < 1e-10

    @pytest.mark.parametrize("num_columns", [1, 4])
    def test_columns_are_single_products(self, operator: LinearOperator, num_columns: int) -> None:
        samples, (m, n) = operator.num_samples, operator.shape
        V, U = normal(samples, n, num_columns, seed=4), normal(samples, m, num_columns, seed=5)
        forward, backward = operator.matmat(V).detach(), operator.rmatmat(U).detach()
        for k in range(num_columns):
            assert relative_difference(forward[..., k], operator.matvec(V[..., k]).detach()) < 1e-12
            assert relative_difference(backward[..., k], operator.rmatvec(U[..., k]).detach()) < 1e-12

    @pytest.mark.parametrize("indices", [[1], [1, 0]], ids=["one", "reversed"])
    def test_select(self, operator: LinearOperator, indices: list[int]) -> None:
        samples, (m, n) = operator.num_samples, operator.shape
        chosen = operator.select(indices)
        assert (chosen.num_samples, chosen.shape) == (len(indices), operator.shape)
        v, u = normal(samples, n, seed=6), normal(samples, m, seed=7)
        assert relative_difference(chosen.matvec(v[indices]).detach(), operator.matvec(v).detach()[indices]) < 1e-12
        assert relative_difference(chosen.rmatvec(u[indices]).detach(), operator.rmatvec(u).detach()[indices]) < 1e-12

    def test_zero_goes_to_zero(self, operator: LinearOperator) -> None:
        samples, (m, n) = operator.num_samples, operator.shape
        assert operator.matvec(torch.zeros(samples, n, dtype=torch.float64)).abs().max() == 0
        assert operator.rmatvec(torch.zeros(samples, m, dtype=torch.float64)).abs().max() == 0

    def test_facts_are_true(self, operator: LinearOperator, dense: Array) -> None:
        assert (operator.psd, operator.symmetric) == (self.psd, self.psd)
        assert (operator.select([0]).psd, operator.select([0]).symmetric) == (self.psd, self.psd)
        if operator.symmetric:
            v = normal(operator.num_samples, operator.shape[1], seed=8)
            assert relative_difference(operator.rmatvec(v).detach(), operator.matvec(v).detach()) < 1e-12
        if operator.psd:
            operator.require_psd()
            eigenvalues = np.linalg.eigvalsh(dense)
            assert eigenvalues.min() >= -1e-10 * eigenvalues.max()
        else:
            with pytest.raises(ValueError, match="expected a symmetric positive semidefinite operator"):
                operator.require_psd()
        if operator.factor is not None:
            columns = normal(operator.num_samples, operator.shape[1], 2, seed=8)
            product = operator.factor.gram_matmat(columns).detach()
            assert relative_difference(product, operator.matmat(columns).detach()) < 1e-12

    def test_gram_products(self, operator: LinearOperator, dense: Array) -> None:
        columns = normal(operator.num_samples, operator.shape[1], 3, seed=9)
        images = dense @ columns.numpy()
        assert relative_difference(operator.gram_matmat(columns).detach(), dense.transpose(0, 2, 1) @ images) < 1e-10
        rows = operator.gram_rows(columns).detach()
        assert relative_difference(rows @ rows.mT, images.transpose(0, 2, 1) @ images) < 1e-10

    @pytest.mark.parametrize(
        "wrong",
        [lambda b, n: (b, n + 1, 1), lambda b, n: (b + 1, n, 1), lambda b, n: (b, n)],
        ids=["too-long", "too-many-samples", "no-columns"],
    )
    def test_wrong_shapes_are_refused(self, operator: LinearOperator, wrong) -> None:
        samples, (m, n) = operator.num_samples, operator.shape
        with pytest.raises(ValueError, match=rf"expected columns of shape \[{samples}, {n}, K\], found"):
            operator.matmat(torch.zeros(wrong(samples, n), dtype=torch.float64))
        with pytest.raises(ValueError, match=rf"expected columns of shape \[{samples}, {m}, K\], found"):
            operator.rmatmat(torch.zeros(wrong(samples, m), dtype=torch.float64))
