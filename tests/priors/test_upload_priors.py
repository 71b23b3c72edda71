"""The prior of an upload: block diagonal, whatever the priors of its samples."""

from __future__ import annotations

import pytest
import torch
from cases import digits
from correlated_cases import moments, prior_for

from riskaudit.priors import IsotropicPrior, in_uploads

SIZE = 2


@pytest.fixture
def bound():
    batch = digits(4)
    return prior_for("lenet", "class").bind(batch.targets, batch.inputs.flatten(1)), batch.targets


def test_roots_and_means_are_those_of_the_samples(bound) -> None:
    alone, _ = bound
    together = in_uploads(alone, SIZE)
    vectors = torch.randn(2, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for mine, theirs in ((together.root, alone.root), (together.inverse_root, alone.inverse_root)):
        assert torch.equal(mine(vectors), theirs(vectors.reshape(4, 64)).reshape(2, 128))
    assert torch.equal(together.mean, alone.mean.reshape(2, 128))
    torch.testing.assert_close(together.variance, alone.variance.reshape(2, 2).mean(1))
    torch.testing.assert_close(together.largest, alone.largest.reshape(2, 2).amax(1))
    second = together.select([1])
    assert torch.equal(second.root(vectors[1:]), together.root(vectors)[1:])


def test_leading_eigenvectors_are_the_largest_of_both_blocks(bound) -> None:
    alone, targets = bound
    together = in_uploads(alone, SIZE)
    assert together.leading is not None
    values, vectors = together.leading(1, 5)
    blocks = [torch.from_numpy(moments(prior_for("lenet", "class"), int(target))[1]) for target in targets[2:]]
    whole = torch.block_diag(*blocks)
    eigenvalues = torch.linalg.eigvalsh(whole).flip(0)
    assert values == pytest.approx(eigenvalues[:6].tolist(), rel=1e-6)
    torch.testing.assert_close(vectors @ vectors.mT, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(
        vectors @ whole, torch.tensor(values[:5])[:, None].double() * vectors, rtol=1e-6, atol=1e-9
    )


def test_isotropic_only_where_all_samples_are_alike() -> None:
    batch = digits(4)
    bound = IsotropicPrior(0.5, 0.3).bind(batch.targets, batch.inputs.flatten(1))
    assert in_uploads(bound, SIZE).isotropic
    assert in_uploads(bound, 1) is bound
