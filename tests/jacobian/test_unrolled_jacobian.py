"""J through the steps of local training against plain autograd, with few states remembered and columns in blocks."""

from __future__ import annotations

from collections.abc import Callable

import joint_oracles
import oracles
import pytest
import torch
import torch.nn.functional as F
from contracts.linear_operator import normal
from contracts.release import network, samples
from joint_oracles import trained
from torch import nn

from riskaudit.jacobian import convolutions, unrolled
from riskaudit.jacobian.informed import InformedJacobian
from riskaudit.jacobian.joint import joint_jacobian_maker
from riskaudit.linalg.operators import identity_columns
from riskaudit.release import Batch, make_release, with_batch_statistics

CASES = {
    "momentum and decay": (
        "local:epochs=3:batch=2:lr=0.2:momentum=0.5:weight_decay=0.1,clip:0.5", 1,
        joint_oracles.then(trained(3, 2, 0.2, 0.5, 0.1), oracles.clipped(0.5)),
    ),
    "Adam": ("local:epochs=2:batch=2:lr=0.02:optimizer=adam", 1, trained(2, 2, 0.02, optimizer="adam")),
    "clients, then a step": (
        "local:epochs=2:batch=1:lr=0.3:momentum=0.5,secagg:2,clip:0.2", 1,
        joint_oracles.then(joint_oracles.of_clients(2, trained(2, 1, 0.3, 0.5)), oracles.clipped(0.2)),
    ),
    "two uploads": ("local:epochs=1:batch=1:lr=0.3", 2, trained(1, 1, 0.3)),
}  # fmt: skip


def jacobian_of(name: str) -> tuple[unrolled.UnrolledJacobian, torch.Tensor]:
    """By the package and by the oracle, [U, P', n d]."""
    text, uploads, released = CASES[name]
    plain = samples(4)
    batch = Batch(plain.inputs, plain.targets, 4 // uploads)
    release = make_release(network(), F.cross_entropy, text)
    expected = [
        torch.from_numpy(joint_oracles.jacobian(released, release.model, each.inputs, each.targets))
        for each in batch.each_upload()
    ]
    made = joint_jacobian_maker(release, batch.select([0]))(batch)
    assert isinstance(made, unrolled.UnrolledJacobian)
    return made, torch.stack(expected)


def check(made: unrolled.UnrolledJacobian, expected: torch.Tensor) -> None:
    dense = made.matmat(identity_columns(made))
    assert oracles.relative_difference(dense, expected) < 1e-10
    rows = normal(len(expected), expected.shape[1], 5, seed=3)
    assert oracles.relative_difference(made.rmatmat(rows), expected.mT @ rows) < 1e-10
    # One column goes without vmap.
    assert oracles.relative_difference(made.rmatvec(rows[..., 0]), (expected.mT @ rows)[..., 0]) < 1e-10
    assert oracles.relative_difference(made.matvec(dense.new_ones(dense.shape[::2])), expected.sum(2)) < 1e-10
    assert oracles.relative_difference(made.hessian().matmat(identity_columns(made)), expected.mT @ expected) < 1e-10
    torch.testing.assert_close(made.mean(), made.release.mean(made.batch).detach(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_plain_autograd(name: str) -> None:
    check(*jacobian_of(name))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("large", [0, 2**20])
def test_a_graph_that_is_kept_is_pulled_through_as_often_as_wanted(name: str, large: int, monkeypatch) -> None:
    monkeypatch.setattr(unrolled, "LARGE_COLUMN", large)
    made, expected = jacobian_of(name)
    check(unrolled.UnrolledJacobian(made.release, made.batch, keeps_graph=True), expected)


@pytest.mark.parametrize("name", ["momentum and decay", "Adam"])
def test_few_states_are_remembered_where_memory_is_short(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unrolled, "FEW_STATES", 1)
    monkeypatch.setattr(unrolled, "STATE_ENTRIES", 0)
    monkeypatch.setattr(unrolled, "BLOCK_COLUMNS", 15)
    made, expected = jacobian_of(name)
    (client,) = made._uploads[0].clients
    assert len(client.parts) > len(client._states) > 1
    check(made, expected)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", CASES)
def test_single_columns_go_through_one_graph_where_that_is_small(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, expected = jacobian_of(name)
    whole = unrolled.UnrolledJacobian(made.release, made.batch)
    steps, long = (unrolled.UnrolledJacobian(made.release, made.batch) for _ in range(2))
    clients = [client for upload in whole._uploads for client in upload.clients]
    bytes_of_graph = unrolled.GRAPHS * sum(client.graph_bytes() for client in clients)
    count = len(clients[0].parts)
    for jacobian, most, most_steps in (
        (whole, bytes_of_graph, count), (steps, bytes_of_graph - 1, count), (long, bytes_of_graph, count - 1),
    ):  # fmt: skip
        monkeypatch.setattr(unrolled, "WHOLE_GRAPH_BYTES", most)
        monkeypatch.setattr(unrolled, "WHOLE_GRAPH_STEPS", most_steps)
        for column in identity_columns(made).unbind(-1)[: 2 + unrolled.FEW_SINGLES]:
            assert oracles.relative_difference(jacobian.matvec(column), (expected @ column[..., None])[..., 0]) < 1e-10
            row = expected @ column[..., None]
            assert oracles.relative_difference(jacobian.rmatvec(row[..., 0]), (expected.mT @ row)[..., 0]) < 1e-10
    assert "_whole" in whole.__dict__
    assert "_whole" not in steps.__dict__
    assert "_whole" not in long.__dict__


@pytest.mark.parametrize("name", ["clients, then a step", "two uploads"])
def test_informed_blocks_are_those_of_the_upload(name: str) -> None:
    made, expected = jacobian_of(name)
    size = made.batch.upload_size
    blocks = torch.cat([upload.reshape(len(upload), size, -1).movedim(1, 0) for upload in expected])
    informed = InformedJacobian(made)
    assert (informed.num_samples, informed.shape) == (4, tuple(blocks.shape[1:]))
    V, U = normal(4, 9, 3, seed=1), normal(4, expected.shape[1], 2, seed=2)
    assert oracles.relative_difference(informed.matmat(V), blocks @ V) < 1e-10
    assert oracles.relative_difference(informed.rmatmat(U), blocks.mT @ U) < 1e-10
    assert oracles.relative_difference(informed.hessian().matmat(V), blocks.mT @ (blocks @ V)) < 1e-10
    some = [3, 0, 3]
    assert oracles.relative_difference(informed.select(some).matmat(V[some]), (blocks @ V)[some]) < 1e-10
    assert informed.select(some).select([1]).samples == [0]
    torch.testing.assert_close(informed.losses(), made.losses())
    torch.testing.assert_close(informed.mean(), made.mean().repeat_interleave(size, 0))


def test_batch_norm_of_every_step_is_differentiated() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    release = make_release(with_batch_statistics(model), F.cross_entropy, "local:epochs=2:batch=3:lr=0.3")
    plain = samples(6)
    batch = Batch(plain.inputs, plain.targets, 6)
    made = joint_jacobian_maker(release, batch)(batch)
    expected = joint_oracles.jacobian(trained(2, 3, 0.3), model, batch.inputs, batch.targets)
    assert oracles.relative_difference(made.matmat(identity_columns(made))[0], torch.from_numpy(expected)) < 1e-9


def test_many_columns_through_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)
    ).double().eval()  # fmt: skip
    batch = Batch(torch.rand(4, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0]), 4)
    release = make_release(model, F.cross_entropy, "local:epochs=2:batch=2:lr=0.3:momentum=0.5")
    made = joint_jacobian_maker(release, batch)(batch)
    expected = torch.from_numpy(joint_oracles.jacobian(trained(2, 2, 0.3, 0.5), model, batch.inputs, batch.targets))
    replaced = []
    monkeypatch.setattr(convolutions, "_matrix", counting(convolutions._matrix, replaced))
    monkeypatch.setattr(convolutions, "_signal_windows", counting(convolutions._signal_windows, replaced))
    assert oracles.relative_difference(made.matmat(identity_columns(made))[0], expected) < 1e-10
    rows = normal(1, len(expected), 30, seed=3)
    assert oracles.relative_difference(made.rmatmat(rows)[0], expected.mT @ rows[0]) < 1e-10
    assert set(replaced) == {"_matrix", "_signal_windows"}


def counting(function: Callable[..., torch.Tensor], calls: list[str]) -> Callable[..., torch.Tensor]:
    def counted(*args: object) -> torch.Tensor:
        calls.append(function.__name__)
        return function(*args)

    return counted
