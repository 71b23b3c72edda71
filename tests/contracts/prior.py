"""What every `Prior` must do. Inherit, and give a prior, targets, and the mean and covariance that each of them has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import Array, relative_difference

from riskaudit.priors import Prior, WhitenedOperator
from riskaudit.results import PriorInfo


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class PriorContract:
    covers: type[Prior]

    @pytest.fixture
    def prior(self) -> Prior:
        raise NotImplementedError

    @pytest.fixture
    def targets(self) -> torch.Tensor:
        """At least three samples."""
        raise NotImplementedError

    @pytest.fixture
    def moments(self, prior: Prior, targets: torch.Tensor) -> list[tuple[Array, Array]]:
        """Mean [d] and covariance [d, d] of each sample, from an oracle."""
        raise NotImplementedError

    @pytest.fixture
    def bound(self, prior: Prior, targets: torch.Tensor, moments):
        return prior.bind(targets, torch.zeros(len(targets), len(moments[0][0]), dtype=torch.float64))

    def test_is_what_it_covers(self, prior: Prior) -> None:
        assert type(prior) is self.covers
        assert isinstance(prior, Prior)

    def test_mean(self, bound, moments) -> None:
        assert bound.mean.dtype == torch.float64
        assert relative_difference(bound.mean, np.stack([mean for mean, _ in moments])) < 1e-12

    def test_root_twice_is_the_covariance(self, bound, moments) -> None:
        vector = normal(*bound.mean.shape)
        expected = np.stack([cov @ one.numpy() for (_, cov), one in zip(moments, vector, strict=True)])
        assert relative_difference(bound.root(bound.root(vector)), expected) < 1e-10

    def test_root_is_symmetric(self, bound) -> None:
        left, right = normal(*bound.mean.shape), normal(*bound.mean.shape, seed=1)
        one, other = (bound.root(left) * right).sum(-1), (left * bound.root(right)).sum(-1)
        assert relative_difference(one, other) < 1e-10

    def test_inverse_root_undoes_the_root(self, bound) -> None:
        vector = normal(*bound.mean.shape)
        assert relative_difference(bound.inverse_root(bound.root(vector)), vector) < 1e-9
        assert relative_difference(bound.root(bound.inverse_root(vector)), vector) < 1e-9

    def test_variance_and_largest(self, bound, moments) -> None:
        assert (bound.variance.dtype, bound.largest.dtype) == (torch.float64, torch.float64)
        assert relative_difference(bound.variance, [np.trace(cov) / len(cov) for _, cov in moments]) < 1e-10
        assert relative_difference(bound.largest, [np.linalg.eigvalsh(cov)[-1] for _, cov in moments]) < 1e-9

    @pytest.mark.parametrize("indices", [[2, 0], [1, 1, 1, 0], [2]])
    def test_select(self, bound, indices: list[int]) -> None:
        chosen, vector = bound.select(indices), normal(*bound.mean.shape)
        assert torch.equal(chosen.mean, bound.mean[indices])
        assert torch.equal(chosen.variance, bound.variance[indices])
        assert torch.equal(chosen.largest, bound.largest[indices])
        assert relative_difference(chosen.root(vector[indices]), bound.root(vector)[indices]) < 1e-13
        assert relative_difference(chosen.inverse_root(vector[indices]), bound.inverse_root(vector)[indices]) < 1e-13
        assert torch.equal(chosen.select([0]).mean, bound.mean[indices[:1]])

    def test_works_in_the_given_dtype(self, prior: Prior, targets: torch.Tensor, bound) -> None:
        single = prior.bind(targets, bound.mean.float())
        root = single.root(normal(*bound.mean.shape).float())
        assert (single.mean.dtype, root.dtype) == (torch.float32, torch.float32)
        assert relative_difference(root, bound.root(normal(*bound.mean.shape))) < 1e-5
        assert single.variance.dtype == torch.float64

    def test_isotropic_is_a_fact_about_the_root(self, bound) -> None:
        vector = normal(*bound.mean.shape)
        if bound.isotropic:
            assert torch.equal(bound.root(vector), bound.std[:, None] * vector)
            assert bound.in_its_units().root(vector) is vector

    def test_in_its_own_units_the_mean_variance_is_one(self, bound, moments) -> None:
        units, vector, std = bound.in_its_units(), normal(*bound.mean.shape), bound.std[:, None]
        assert torch.equal(units.variance, torch.ones_like(bound.variance))
        assert torch.equal(units.mean, bound.mean)
        assert units.isotropic == bound.isotropic
        assert relative_difference(std * units.root(vector), bound.root(vector)) < 1e-13
        assert relative_difference(units.inverse_root(vector) / std, bound.inverse_root(vector)) < 1e-13
        norms = [np.linalg.eigvalsh(cov)[-1] * len(cov) / np.trace(cov) for _, cov in moments]
        assert relative_difference(units.largest, norms) < 1e-9
        chosen = units.select([2, 0])
        assert relative_difference(chosen.root(vector[[2, 0]]), units.root(vector)[[2, 0]]) < 1e-13

    def test_alike_everywhere_only_the_mean_variance_is_left(self, bound, moments) -> None:
        plain, vector = bound.alike_everywhere(), normal(*bound.mean.shape)
        std = np.array([np.trace(cov) / len(cov) for _, cov in moments]) ** 0.5
        assert relative_difference(plain.root(vector), std[:, None] * vector.numpy()) < 1e-10
        assert relative_difference(plain.inverse_root(plain.root(vector)), vector) < 1e-13
        assert torch.equal(plain.mean, bound.mean)
        assert torch.equal(plain.largest, plain.variance)
        assert plain.isotropic
        chosen = plain.select([2, 0])
        assert relative_difference(chosen.root(vector[[2, 0]]), plain.root(vector)[[2, 0]]) < 1e-13

    def test_leading_eigenvectors_are_those_of_the_covariance(self, bound, moments) -> None:
        for prior, scale in ((bound, np.ones(len(moments))), (bound.in_its_units(), bound.variance.numpy())):
            for index, (_, cov) in enumerate(moments if prior.leading else []):
                values, vectors = prior.leading(index, 3)
                assert len(values) == len(vectors) + 1
                assert relative_difference(values, np.linalg.eigvalsh(cov)[::-1][: len(values)] / scale[index]) < 1e-8
                expected = np.array(values[:-1])[:, None] * vectors.numpy()
                assert relative_difference(vectors.numpy() @ cov / scale[index], expected) < 1e-8

    def test_info(self, prior: Prior) -> None:
        info = prior.info()
        assert isinstance(info, PriorInfo)
        assert info.kind == prior.kind
        assert info.std > 0

    def test_whitened_operator(self, bound, moments) -> None:
        from riskaudit.linalg import MatrixOperator

        factor = normal(*bound.mean.shape, 7)
        matrices = factor @ factor.mT
        operator = WhitenedOperator(MatrixOperator(matrices, psd=True), bound)
        columns = normal(*bound.mean.shape, 2, seed=3)
        roots = [_square_root(cov) for _, cov in moments]
        expected = np.stack(
            [
                root @ matrix @ root @ column
                for root, matrix, column in zip(roots, matrices.numpy(), columns.numpy(), strict=True)
            ]
        )
        assert relative_difference(operator.matmat(columns), expected) < 1e-10
        assert relative_difference(operator.select([2, 0]).matmat(columns[[2, 0]]), expected[[2, 0]]) < 1e-10


def _square_root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values)) @ vectors.T
