"""Updates, losses and attributes that a review can't take: each reason says what to do, and that works."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from guard_cases import NOISE, gradient, guard_of, images, network
from torch import Tensor, nn

from riskaudit import Samples, audit
from riskaudit.errors import CheckpointError, SettingsError
from riskaudit.guard import Guard, Policy, SecureNoise

OPEN = Policy(max_revealed=0.999)


@pytest.fixture
def client():
    model, batch = network(), images()
    return model, batch, gradient(model, batch, NOISE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Tensor.to_sparse, "torch.sparse_coo; hand over its to_dense"),
        (Tensor.to_mkldnn, "torch._mkldnn; hand over its to_dense"),
        (lambda one: torch.quantize_per_tensor(one, 0.1, 0, torch.qint8), "quantized; hand over its dequantize"),
        (lambda one: one.to("meta"), "device meta; hand over the update"),
        (lambda _: None, "found none; hand over zeros where it has no gradient"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_update_that_is_no_dense_tensor_is_told_what_to_be(client, change, words, named) -> None:
    model, batch, update = client
    changed = [change(update[0]), *update[1:]]
    given = dict(zip(dict(model.named_parameters()), changed, strict=True)) if named else changed
    decision = guard_of(model, OPEN).review(batch, given)
    assert decision.action == "block"
    assert "0.weight" in decision.reasons[0]
    assert words in decision.reasons[0]
    if "to_dense" in words:
        dense = [changed[0].to_dense(), *changed[1:]]
        assert guard_of(model, OPEN).review(batch, dense).action == "allow"


def test_a_sparsified_update_is_told_to_choose_beforehand(client) -> None:
    model, batch, _ = client
    update = gradient(model, batch)
    kept = [one * (one.abs() >= one.abs().median()) for one in update]
    decision = guard_of(model, Policy(max_revealed=1.0), None).review(batch, kept)
    assert decision.action == "block"
    assert "0 where the gradient isn't" in decision.reasons[0]
    assert "mask:RATIO in the release" in decision.reasons[0]
    other = guard_of(model, Policy(max_revealed=1.0), None).review(batch, [2 * one for one in update])
    assert "entries are 0" not in other.reasons[0]


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def above_median(values: Tensor) -> Tensor:
    return values[values > values.median()].mean()


IN_BATCH: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "hardest examples": (lambda o, t: losses(o, t).topk(2)[0].mean(), "can't be computed for one sample by itself"),
    "hardest example": (lambda o, t: losses(o, t).max(), "picks samples by their losses"),
    "above the median": (lambda o, t: above_median(losses(o, t)), "picks some by their losses"),
    "pairs": (lambda o, t: F.cross_entropy(o @ o.T, torch.arange(len(o))), "compares samples"),
    "neighbours": (lambda o, t: (losses(o, t)[1:] - losses(o, t)[:-1]).square().mean() + o[1].sum(), "by itself"),
    "centred": (lambda o, t: losses(o, t).mean() + (o - o.mean(0)).square().mean(), "compares samples"),
}


@pytest.mark.parametrize("name", IN_BATCH)
def test_a_loss_over_a_batch_is_told_to_be_a_mean(name) -> None:
    model, batch = network(), images()
    loss, words = IN_BATCH[name]

    def reviewed(own):  # type: ignore[no-untyped-def]
        gradients = torch.autograd.grad(own(model(batch[0]), batch[1]), list(model.parameters()))
        noise = SecureNoise("gaussian", NOISE)
        guard = Guard(model, own, OPEN, prior_std=0.3, release=f"gaussian:{NOISE}", local_steps=1)
        return guard.review(batch, [noise.added(one) for one in gradients])

    decision = reviewed(loss)
    assert decision.action == "block"
    assert words in decision.reasons[0]
    assert "mean over the samples" in decision.reasons[0]
    assert reviewed(lambda o, t: losses(o, t).mean()).action == "allow"


@dataclass
class Output:
    logits: Tensor


RETURNED: dict[str, tuple[Callable[[Tensor], object], Callable[[Any], Tensor]]] = {
    "dict": (lambda o: {"logits": o}, lambda given: given["logits"]),
    "tuple": (lambda o: (o, o.square()), lambda given: given[0]),
    "Output": (Output, lambda given: given.logits),
}


class Returning(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = network(), kind

    def forward(self, x):
        return RETURNED[self.kind][0](self.net(x))


class Logits(nn.Module):
    def __init__(self, net: Returning) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        return RETURNED[self.net.kind][1](self.net(x))


@pytest.mark.parametrize("kind", RETURNED)
@pytest.mark.parametrize("advice", ["a module around it", "a forward of its own"])
def test_a_model_that_returns_no_tensor_is_told_what_to_return(kind, advice) -> None:
    model, batch = Returning(kind), images()
    entry = RETURNED[kind][1]
    gradients = torch.autograd.grad(F.cross_entropy(entry(model(batch[0])), batch[1]), list(model.parameters()))
    update = [SecureNoise("gaussian", NOISE).added(one) for one in gradients]
    decision = guard_of(model, OPEN).review(batch, update)
    assert decision.action == "block"
    assert f"the model returns a {kind}" in decision.reasons[0]
    if advice == "a module around it":
        mended: nn.Module = Logits(model)
    else:
        mended, forward = model, model.forward
        mended.forward = lambda x: entry(forward(x))
    other = guard_of(mended, OPEN).review(batch, update)
    assert other.action == "allow", other.reasons
    plain = guard_of(model.net, OPEN)
    alone = plain.review(batch, gradient(model.net, batch, NOISE))
    for one, same in zip(other.exposures, alone.exposures, strict=True):
        assert one.revealed.low <= same.revealed.high
        assert same.revealed.low <= one.revealed.high


@pytest.mark.parametrize("wrong", [lambda x: x, None, network], ids=["lambda", "none", "class"])
def test_what_is_no_module_is_no_model(wrong) -> None:
    with pytest.raises(SettingsError, match=r"model to be a torch\.nn\.Module, found a"):
        guard_of(wrong, OPEN)
    with pytest.raises(CheckpointError, match=r"expected a torch.nn.Module, found a "):
        audit(wrong, Samples.from_tensors(*images()))


class Tokens(nn.Module):
    """An embedding whose gradient torch makes sparse, beside a layer that sees the input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(4, 8, sparse=True), nn.Linear(64, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        flat = x.flatten(1)
        return self.head(torch.tanh(self.layer(flat) + self.embedding(flat[:, :4].argmax(1))))


def test_a_sparse_embedding_is_reviewed_by_its_dense_gradient() -> None:
    torch.manual_seed(0)
    model, batch = Tokens(), images()
    gradients = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
    assert gradients[0].is_sparse
    guard = guard_of(model, Policy(max_revealed=0.999, max_unassessed=1.0))
    assert "to_dense" in guard.review(batch, gradients).reasons[0]
    noise = SecureNoise("gaussian", NOISE)
    decision = guard.confirm(guard.review(batch, [noise.added(one.to_dense()) for one in gradients]))
    assert decision.action == "allow", decision.reasons


class Locked(nn.Module):
    """A model with a lock, and a loss with one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.lock, self.started = inner, threading.RLock(), threading.Event()

    def forward(self, *given):
        with self.lock:
            outputs = self.inner(*given)
            return outputs * 2 if self.started.is_set() else outputs


def test_locks_do_no_harm_and_events_are_watched() -> None:
    model, loss, batch = Locked(network()), Locked(nn.CrossEntropyLoss()), images()
    update = gradient(model, batch, NOISE)
    guard = Guard(model, loss, OPEN, prior_std=0.3, release=f"gaussian:{NOISE}", local_steps=1)
    decision = guard.review(batch, update)
    assert decision.action == "allow", decision.reasons
    assert guard.confirm(decision) is decision
    model.started.set()
    confirmed = guard.confirm(decision)
    assert confirmed.action == "block"
    assert "model.started._flag" in confirmed.reasons[0]


def test_an_attribute_that_can_not_be_compared_is_named(client) -> None:
    model, batch, update = client
    model.source = (one for one in ())
    decision = guard_of(model, OPEN).review(batch, update)
    assert decision.action == "block"
    assert "model.source is a generator" in decision.reasons[0]
    del model.source
    assert guard_of(model, OPEN).review(batch, update).action == "allow"
