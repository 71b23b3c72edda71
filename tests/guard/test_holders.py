"""Whatever the caller still holds may change during and after a review; what is sent is what was reviewed."""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from guard_cases import NOISE, gradient, guard_of, images, network
from torch import nn

from riskaudit.errors import GuardError
from riskaudit.guard import Policy
from riskaudit.guard.batches import held_batch, refuse_changed
from riskaudit.guard.client import Client
from riskaudit.guard.snapshot import take_snapshot
from riskaudit.release import Batch

OPEN = Policy(max_revealed=0.999)


@pytest.fixture
def client():
    model, batch = network(), images()
    return model, batch, gradient(model, batch, NOISE)


class Gained(nn.Module):
    """A network whose first weights see inputs times a gain that is no weight."""

    def __init__(self, holder) -> None:
        super().__init__()
        self.net, self.holder = network(), holder

    def forward(self, x):
        return self.net(x * self.holder())


class Holder:
    """A gain that is kept somewhere, and a way to change it."""

    def __init__(self, kind: str) -> None:
        self.kind, self.gain = kind, {"gain": 1.0} if kind == "dict" else [1.0] if kind == "list" else torch.ones(1)

    def __call__(self):
        return self.gain["gain"] if self.kind == "dict" else self.gain[0]

    def turn(self, value: float) -> None:
        self.gain["gain" if self.kind == "dict" else 0] = value


@pytest.mark.parametrize("kind", ["dict", "list", "tensor"])
def test_a_guard_that_has_seen_the_model_before_reviews_it_as_a_new_one_does(kind) -> None:
    holder, batch = Holder(kind), images()
    model = Gained(holder)
    holder.turn(0.01)
    policy = Policy(max_revealed=0.2)
    guard = guard_of(model, policy, 0.2)
    first = guard.review(batch, gradient(model, batch, 0.2))
    assert first.action == "allow", first.reasons
    holder.turn(60.0)
    update = gradient(model, batch, 0.2)
    again, fresh = guard.review(batch, update), guard_of(model, policy, 0.2).review(batch, update)
    assert again.action == fresh.action == "block"


@pytest.mark.parametrize("kind", ["dict", "list", "tensor"])
def test_a_change_after_the_review_is_seen_before_sending(kind) -> None:
    holder, batch = Holder(kind), images()
    model = Gained(holder)
    guard = guard_of(model, OPEN)
    decision = guard.review(batch, gradient(model, batch, NOISE))
    assert guard.confirm(decision) is decision
    holder.turn(2.0)
    confirmed = guard.confirm(decision)
    assert confirmed.action == "block"
    assert "model.holder.gain" in confirmed.reasons[0]


def test_class_weights_that_change_after_the_review_are_seen_before_sending() -> None:
    model, batch = network(), images()
    weights = torch.ones(4)

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets, weight=weights.to(outputs))

    from riskaudit.guard import Guard

    guard = Guard(model, loss, OPEN, prior_std=0.3, release=f"gaussian:{NOISE}", local_steps=1)
    decision = guard.review(batch, gradient(model, batch, NOISE))
    assert decision.update is not None, decision.reasons
    weights[0] = 50.0
    assert guard.confirm(decision).action == "block"


def test_a_model_that_changes_during_the_review_is_withheld(client, monkeypatch) -> None:
    model, batch, update = client
    guard = guard_of(model, OPEN)
    mean = guard.client.mean

    def meanwhile(one):
        result = mean(one)
        with torch.no_grad():
            model[0].weight.mul_(3.0)
        return result

    monkeypatch.setattr(guard.client, "mean", meanwhile)
    decision = guard.review(batch, update)
    assert (decision.action, decision.update) == ("block", None)
    assert "model.0.weight changed while" in decision.reasons[0]


def turned(model, by: float) -> None:
    with torch.no_grad():
        for value in model.parameters():
            value.add_(by)


def test_what_is_audited_is_what_the_digest_is_of(client, monkeypatch) -> None:
    """Weights that change right after their digest was made, and are back before the end, are not what is audited."""
    model, batch, update = client
    honest = guard_of(model, OPEN).review(batch, update)
    guard = guard_of(model, OPEN)
    before = [value.detach().clone() for value in model.parameters()]
    observe, mean = guard.client.observe, guard.client.mean

    def observed(*given):
        snapshot = observe(*given)
        turned(model, 5.0)
        return snapshot

    def restored(prepared):
        monkeypatch.setattr(guard.client, "observe", observe)
        with torch.no_grad():
            for value, old in zip(model.parameters(), before, strict=True):
                value.copy_(old)
        return mean(prepared)

    monkeypatch.setattr(guard.client, "observe", observed)
    monkeypatch.setattr(guard.client, "mean", restored)
    decision = guard.review(batch, update)
    assert decision.action == "allow", decision.reasons
    audited = guard.client._copy
    assert all(torch.equal(own, old) for own, old in zip(audited.parameters(), before, strict=True))
    assert take_snapshot(model=audited).model_digest == decision.model_digest == honest.model_digest
    assert guard.confirm(decision) is decision


@pytest.mark.sampled(1)
@pytest.mark.parametrize("policy", [
    Policy(max_revealed=0.05, on_violation="sanitise"),
    Policy(max_revealed=0.05, on_violation="sanitise", sanitiser="clip", clip_norm=0.1),
    Policy(max_revealed=0.2, max_gradients=None),
], ids=["noise", "clip", "refined"])  # fmt: skip
def test_weights_that_change_while_a_sample_is_refined_withhold(client, monkeypatch, policy) -> None:
    model, batch, update = client
    follow = Client._followed_by

    def meanwhile(self, other):
        turned(model, 1e-3)
        try:
            return follow(self, other)
        finally:
            turned(model, -1e-3)

    calm = guard_of(model, policy).review(batch, update)
    followed = []
    monkeypatch.setattr(Client, "_followed_by", lambda self, other: (followed.append(1), meanwhile(self, other)))
    decision = guard_of(model, policy).review(batch, update)
    assert followed
    assert (decision.action, decision.update) == ("block", None)
    assert any("changed while the review" in reason for reason in decision.reasons)
    assert calm.update is not None


def test_weights_that_a_thread_keeps_changing_are_never_audited_as_others(client) -> None:
    """Whatever passes was audited at the very weights that its digest is of."""
    model, batch, update = client
    before = [value.detach().clone() for value in model.parameters()]
    stop = threading.Event()

    def jitter() -> None:
        while not stop.is_set():
            turned(model, 1.0)
            time.sleep(2e-4)
            with torch.no_grad():
                for value, old in zip(model.parameters(), before, strict=True):
                    value.copy_(old)
            time.sleep(2e-4)

    thread = threading.Thread(target=jitter)
    thread.start()
    try:
        for _ in range(15):
            guard = guard_of(model, OPEN)
            decision = guard.review(batch, update)
            if decision.update is not None:
                assert take_snapshot(model=guard.client._copy).model_digest == decision.model_digest
    finally:
        stop.set()
        thread.join()


def test_a_batch_and_an_update_that_change_during_the_review_are_reviewed_as_they_were(client, monkeypatch) -> None:
    model, (inputs, targets), update = client
    guard = guard_of(model, OPEN)
    before = [tensor.clone() for tensor in update]
    refresh = guard.client.batch

    def meanwhile(*parts):
        inputs.zero_()
        targets.fill_(1)
        for tensor in update:
            tensor.zero_()
        return refresh(*parts)

    monkeypatch.setattr(guard.client, "batch", meanwhile)
    decision = guard.review((inputs, targets), update)
    assert decision.action == "allow", decision.reasons
    assert all(torch.equal(sent, own) for sent, own in zip(decision.update, before, strict=True))


@pytest.mark.parametrize("forged", ["replaced", "copied", "of another guard", "made up"])
def test_only_a_decision_of_this_guard_is_confirmed(client, forged) -> None:
    model, batch, update = client
    guard, other = guard_of(model, OPEN), guard_of(model, OPEN)
    decision = guard.review(batch, update)
    made_up = replace(
        guard_of(model, Policy(max_revealed=1e-9)).review(batch, update),
        action="allow", update=decision.update, update_digest=decision.update_digest,
    )  # fmt: skip
    candidate = {
        "replaced": replace(decision, reasons=[]),
        "copied": copy.copy(decision),
        "of another guard": other.review(batch, update),
        "made up": made_up,
    }[forged]
    confirmed = guard.confirm(candidate)
    assert (confirmed.action, confirmed.update) == ("block", None)
    assert guard.confirm(decision) is decision


def test_only_an_assessment_of_this_guard_counts(client) -> None:
    model, batch, update = client
    guard = guard_of(model, OPEN)
    assessed = guard.assess(batch)
    assert guard.review(batch, update, assessment=assessed).action == "allow"
    assert guard.review(batch, update, assessment=replace(assessed)).action == "block"
    assert guard.review(batch, update, assessment=guard_of(model, OPEN).assess(batch)).action == "block"


def test_a_list_of_samples_that_is_changed_changes_nothing(client) -> None:
    model, batch, update = client
    guard = guard_of(model, OPEN)
    assessed = guard.assess(batch)
    del assessed.kept[1:]
    decision = guard.review(batch, update, assessment=assessed)
    assert decision.action == "allow"
    assert len(decision.exposures) == len(batch[0])


@pytest.mark.parametrize("changed", [0, 1], ids=["inputs", "targets"])
def test_a_batch_that_the_step_changes_in_place_is_refused(client, changed) -> None:
    _, (inputs, targets), _ = client
    given = inputs.clone(), targets.clone()
    for batch in (given, Batch(*given)):
        held = held_batch(batch)
        refuse_changed(batch, held)
        assert all(map(torch.equal, held, given))
        given[changed].add_(1)
        with pytest.raises(GuardError, match="the batch changed"):
            refuse_changed(batch, held)


def test_what_an_attribute_keeps_of_the_last_pass_does_no_harm() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x):
            self.last = self.net(x)  # with its graph, which no copy of the model may have
            return self.last

    model, batch = Remembering(), images()
    update = gradient(model, batch, NOISE)
    guard = guard_of(model, OPEN)
    decision = guard.review(batch, update)
    assert decision.action == "allow", decision.reasons
    assert guard.confirm(decision) is decision


def test_a_prior_that_is_changed_stays_as_it_was(client) -> None:
    from riskaudit.priors.gaussian import GaussianPrior, Origin

    model, *_ = client
    mean, size = torch.full((64,), 0.5, dtype=torch.float64), torch.zeros(64, 0, dtype=torch.float64)
    variance = torch.zeros(0, dtype=torch.float64)
    prior = GaussianPrior(mean, size, variance, 0.09, (1, 8, 8), Origin("public", None, 1000, {}))
    guard = guard_of(model, OPEN, prior=prior, prior_std=None)
    mean.fill_(1e6)
    assert torch.equal(guard.prior.mean, torch.full((64,), 0.5, dtype=torch.float64))
