"""The benchmarks' baselines against dense float64 oracles on a tiny model."""

from __future__ import annotations

import cases
import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from oracles import Array, relative_difference

from benchmarks.baselines import DoubleBackprop, Textbook, batch_gradient, largest_by_arpack
from benchmarks.contestants import CONTESTANTS, UNIT
from riskaudit.release import Batch, PerSampleRelease, Release

MODELS = {
    "lenet": lambda: (cases.lenet(8), cases.mnist(3, 8)),
    "mlp": lambda: (cases.mlp((64, 12, 10)), cases.mnist(3, 8)),
    "batch-norm": lambda: (cases.residual(), cases.mnist(3, 8)),
}


@pytest.fixture(params=MODELS)
def problem(request) -> tuple[Release, Batch, Array]:
    """A release, its batch and J [B, P, d]."""
    model, batch = MODELS[request.param]()
    pairs = zip(batch.inputs, batch.targets, strict=True)
    J = np.stack([oracles.jacobian(model, F.cross_entropy, x, target) for x, target in pairs])
    return PerSampleRelease(model, F.cross_entropy), batch, J


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def flat(parts) -> Array:
    return torch.cat([part.reshape(-1) for part in parts]).numpy()


@pytest.mark.parametrize("cached", [False, True], ids=["rebuilt", "cached"])
def test_double_backprop_is_the_dense_jacobian(problem, cached) -> None:
    release, batch, J = problem
    sample = DoubleBackprop(release, batch.inputs[1], batch.targets[1], cached=cached)
    u, v = normal(J.shape[1]), normal(J.shape[2])
    # Twice: a cached graph must outlive its first product.
    for _ in range(2):
        assert relative_difference(flat(sample.push(v)), J[1] @ v.numpy()) < 1e-10
        assert relative_difference(sample.apply(v), J[1].T @ (J[1] @ v.numpy())) < 1e-10
        assert relative_difference(sample.apply_outer(u), J[1] @ (J[1].T @ u.numpy())) < 1e-10


def test_textbook_is_the_dense_jacobian(problem) -> None:
    release, batch, J = problem
    textbook = Textbook(release, batch)
    v = normal(3, J.shape[2])
    pushed = textbook.push(v)
    found = [flat(pushed[name][index] for name in release.parameters) for index in range(3)]
    assert relative_difference(found, np.einsum("bpd,bd->bp", J, v.numpy())) < 1e-10
    assert relative_difference(textbook.apply(v), np.einsum("bpd,bpe,be->bd", J, J, v.numpy())) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONTESTANTS if name != UNIT])
def test_every_contestant_gives_the_same_product(problem, name) -> None:
    release, batch, J = problem
    v = normal(3, J.shape[2])
    product = CONTESTANTS[name].maker(release, batch)(batch)
    assert relative_difference(product(v).detach(), np.einsum("bpd,bpe,be->bd", J, J, v.numpy())) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True], ids=["rebuilt", "cached"])
def test_arpack_finds_the_largest_eigenvalue(problem, cached) -> None:
    release, batch, J = problem
    sample = DoubleBackprop(release, batch.inputs[0], batch.targets[0], cached=cached)
    value, products = largest_by_arpack(sample, tolerance=1e-8)
    assert value == pytest.approx(np.linalg.norm(J[0], 2) ** 2, rel=1e-8)
    assert products > 0


def test_arpack_stops_earlier_with_a_smaller_basis(problem) -> None:
    release, batch, J = problem
    sample = DoubleBackprop(release, batch.inputs[0], batch.targets[0], cached=True)
    value, products = largest_by_arpack(sample, tolerance=1e-2, basis=8)
    assert value == pytest.approx(np.linalg.norm(J[0], 2) ** 2, rel=1e-3)
    assert products < largest_by_arpack(sample, tolerance=1e-2)[1]


def test_unit_is_the_sum_of_the_samples_gradients(problem) -> None:
    release, batch, _ = problem
    expected = sum(
        oracles.released_mean(release.model, F.cross_entropy, x, target).detach()
        for x, target in zip(batch.inputs, batch.targets, strict=True)
    )
    assert relative_difference(flat(batch_gradient(release, batch)), expected) < 1e-12
