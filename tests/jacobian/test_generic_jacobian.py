"""J of a release by automatic differentiation against plain autograd, in both modes."""

from __future__ import annotations

import cases
import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from contracts.linear_operator import LinearOperatorContract, normal
from oracles import Array, relative_difference

from riskaudit.jacobian import GenericJacobian, generic
from riskaudit.linalg import LinearOperator
from riskaudit.release import Batch, PerSampleRelease


def dense_jacobians(model, batch: Batch, *changes) -> Array:
    pairs = zip(batch.inputs, batch.targets, strict=True)
    return np.stack([oracles.jacobian(model, F.cross_entropy, x, target, changes) for x, target in pairs])


class GenericJacobianContract(LinearOperatorContract):
    covers = GenericJacobian
    forward: bool
    text = "gradient"
    changes: tuple[oracles.Change, ...] = ()

    @pytest.fixture
    def operator(self) -> LinearOperator:
        return GenericJacobian(
            PerSampleRelease(cases.residual(), F.cross_entropy, self.text), cases.mnist(3, 6), self.forward
        )

    @pytest.fixture
    def dense(self) -> Array:
        return dense_jacobians(cases.residual(), cases.mnist(3, 6), *self.changes)


class TestForward(GenericJacobianContract):
    forward = True


class TestReverse(GenericJacobianContract):
    forward = False


class TestForwardOfClippedAndPruned(GenericJacobianContract):
    forward = True
    text = "prune:0.25,clip:0.5,gaussian:1"
    changes = (oracles.pruned(0.25), oracles.clipped(0.5))


class TestReverseOfClippedAndPruned(TestForwardOfClippedAndPruned):
    forward = False


MODELS = {
    "lenet": lambda: (cases.lenet(12), cases.mnist(2, 12)),
    "mlp": lambda: (cases.mlp(), cases.mnist(2, 12)),
    "batch-norm": lambda: (cases.residual(3), cases.cifar(2, 8)),
    "tied-weights": lambda: (cases.tied(), cases.mnist(2, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_both_modes_and_autograd_agree(name: str) -> None:
    model, batch = MODELS[name]()
    expected = dense_jacobians(model, batch)
    release = PerSampleRelease(model, F.cross_entropy)
    V, U = normal(2, expected.shape[2], 3), normal(2, expected.shape[1], 2, seed=1)
    for forward in (True, False):
        operator = GenericJacobian(release, batch, forward)
        assert operator.shape == expected.shape[1:]
        assert relative_difference(operator.matmat(V).detach(), expected @ V.numpy()) < 1e-10
        assert relative_difference(operator.rmatmat(U).detach(), expected.transpose(0, 2, 1) @ U.numpy()) < 1e-10


def test_oracle_by_columns_is_oracle_by_rows() -> None:
    model, batch = cases.residual(), cases.mnist(1, 6)
    arguments = (model, F.cross_entropy, batch.inputs[0], batch.targets[0], (oracles.clipped(0.5),))
    assert relative_difference(oracles.jacobian(*arguments), oracles.jacobian_by_rows(*arguments)) < 1e-12


def test_forward_mode_is_chosen_where_it_works() -> None:
    assert GenericJacobian(PerSampleRelease(cases.residual(), F.cross_entropy), cases.mnist(2, 6)).forward


def test_operation_without_forward_derivative_falls_back_to_reverse() -> None:
    model, batch = cases.sine_net(), cases.mnist(3, 4)
    operator = GenericJacobian(PerSampleRelease(model, F.cross_entropy), batch)
    assert not operator.forward
    expected = dense_jacobians(model, batch)
    V, u = normal(3, 16, 2), normal(3, expected.shape[1])
    assert relative_difference(operator.matmat(V).detach(), expected @ V.numpy()) < 1e-10
    assert relative_difference(operator.matvec(V[..., 0]).detach()[..., None], expected @ V[..., :1].numpy()) < 1e-10
    assert relative_difference(operator.rmatvec(u).detach(), np.einsum("bmn,bm->bn", expected, u.numpy())) < 1e-10


@pytest.mark.parametrize("forward", [True, False], ids=["forward", "reverse"])
def test_blocks_of_columns_do_not_matter(forward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    release, batch, V = PerSampleRelease(cases.residual(), F.cross_entropy), cases.mnist(2, 6), normal(2, 36, 7)
    whole = GenericJacobian(release, batch, forward).matmat(V).detach()
    monkeypatch.setattr(generic, "BLOCK_COLUMNS", 3)
    blocks = GenericJacobian(release, batch, forward).matmat(V).detach()
    assert relative_difference(blocks, whole) < 1e-12


@pytest.mark.parametrize("forward", [True, False], ids=["forward", "reverse"])
def test_samples_do_not_see_each_other(forward: bool) -> None:
    release, batch = PerSampleRelease(cases.residual(), F.cross_entropy), cases.mnist(3, 6)
    v = normal(3, 36)
    together = GenericJacobian(release, batch, forward).matvec(v).detach()
    alone = GenericJacobian(release, batch.select([1]), forward).matvec(v[1:2]).detach()
    assert relative_difference(alone[0], together[1]) < 1e-12


def test_float32_follows_float64() -> None:
    batch = cases.mnist(2, 6)
    single = Batch(batch.inputs.float(), batch.targets)
    v = normal(2, 36)
    expected = GenericJacobian(PerSampleRelease(cases.residual(), F.cross_entropy), batch).matvec(v)
    actual = GenericJacobian(PerSampleRelease(cases.residual().float(), F.cross_entropy), single).matvec(v.float())
    assert actual.dtype == torch.float32
    assert relative_difference(actual.detach(), expected.detach()) < 1e-5


RELEASES = {
    "gradient": ("gradient", ()),
    "clipped": ("clip:0.5,gaussian:1", (oracles.clipped(0.5),)),
    "pruned": ("prune:0.25,gaussian:1", (oracles.pruned(0.25),)),
    "clipped-then-pruned": ("clip:0.5,prune:0.25", (oracles.clipped(0.5), oracles.pruned(0.25))),
}


# Each takes seconds, and a chain of steps holds the single ones.
CHAINS = [
    pytest.param(release, marks=() if release == "clipped-then-pruned" else pytest.mark.slow) for release in RELEASES
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("release", CHAINS)
@pytest.mark.parametrize("name", MODELS)
def test_many_products_stay_right(name: str, release: str) -> None:
    """The first products are made one by one, later ones by a linearisation that was traced."""
    model, batch = MODELS[name]()
    text, changes = RELEASES[release]
    if name == "mlp" and "prune" in text:
        pytest.skip("black pixels give exact zeros, of which pruning keeps any: no one Jacobian")
    expected = dense_jacobians(model, batch, *changes)
    operator = GenericJacobian(PerSampleRelease(model, F.cross_entropy, text), batch, forward=True)
    for number in range(generic.PLAIN_PUSHES + 3):
        v, u = normal(2, expected.shape[2], seed=number), normal(2, expected.shape[1], seed=50 + number)
        product, pulled = operator.matvec(v).detach(), operator.rmatvec(u).detach()
        assert relative_difference(product, np.einsum("bmn,bn->bm", expected, v)) < 1e-10
        assert relative_difference(pulled, np.einsum("bmn,bm->bn", expected, u)) < 1e-10
    assert operator._linearised is not operator._plain_push
