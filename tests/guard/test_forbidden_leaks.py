"""The guard runs forbidden leak checks first, on what really leaves, and withholds by them alone."""

from __future__ import annotations

import pytest
import torch
from guard_cases import CLASSES, PRIOR_STD, gradient, guard_of, images
from torch import nn

from riskaudit.errors import SettingsError
from riskaudit.guard import Guard, Policy
from riskaudit.guard import leaks as module

FORBIDDING = Policy(max_revealed=1.0, buffers="reset", forbid_checks=("singleton-unit",))


def dense(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), activation(), nn.Linear(40, CLASSES))


@pytest.mark.parametrize(("activation", "action"), [(nn.ReLU, "block"), (nn.Tanh, "allow")])
def test_a_mean_gradient_with_a_sample_in_the_clear_is_withheld(activation, action) -> None:
    model, batch = dense(activation), images()
    decision = guard_of(model, FORBIDDING, None).review(batch, gradient(model, batch))
    assert decision.action == action
    if action == "block":
        assert decision.update is None
        assert any("singleton-unit" in reason for reason in decision.reasons)
        # Nothing else was worked out.
        assert decision.products == 0
    allowed = guard_of(model, Policy(max_revealed=1.0), None).review(batch, gradient(model, batch))
    assert allowed.action == "allow"


def test_a_recorded_round_with_a_sample_in_the_clear_is_withheld() -> None:
    for activation, action in ((nn.ReLU, "block"), (nn.Tanh, "allow")):
        model = dense(activation).train()
        guard = Guard(model, "cross-entropy", FORBIDDING, prior_std=PRIOR_STD)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recording = guard.record(optimizer)
        inputs, targets = images(8)
        for part in (slice(0, 4), slice(4, 8)):
            optimizer.zero_grad()
            recording.loss(inputs[part], targets[part]).backward()
            optimizer.step()
        decision = recording.review()
        assert decision.action == action, decision.reasons


@pytest.mark.parametrize(("buffers", "action"), [("block", "block"), ("reset", "sanitise")])
def test_running_statistics_are_the_guards_own_business(buffers, action) -> None:
    """They leave as they were received, or nothing does; forbidding the check that reads them changes neither."""
    for forbidden in ((), ("batch-norm-buffers",)):
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES)]
        model = nn.Sequential(*layers).train()
        policy = Policy(max_revealed=1.0, buffers=buffers, forbid_checks=forbidden)
        guard = Guard(model, "cross-entropy", policy, prior_std=PRIOR_STD)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recording = guard.record(optimizer)
        inputs, targets = images(4)
        recording.loss(inputs, targets).backward()
        optimizer.step()
        decision = recording.review()
        assert decision.action == action, decision.reasons
        assert not any("batch-norm-buffers" in reason for reason in decision.reasons)


def test_noise_that_drowns_the_quotient_lets_it_pass() -> None:
    model, batch = dense(), images()
    decision = guard_of(model, FORBIDDING, 1.0).review(batch, gradient(model, batch, 1.0))
    assert decision.action == "allow", decision.reasons


def test_a_check_that_fails_withholds(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("private words")

    monkeypatch.setattr(module, "check_upload", broken)
    model, batch = dense(nn.Tanh), images()
    decision = guard_of(model, FORBIDDING, None).review(batch, gradient(model, batch))
    assert decision.action == "block"
    assert not any("private" in reason for reason in decision.reasons)


def test_a_guard_without_a_policy_is_refused_in_a_sentence() -> None:
    with pytest.raises(SettingsError, match=r"expected policy to be a riskaudit\.Policy, found a NoneType"):
        Guard(dense(), "cross-entropy", None, prior_std=PRIOR_STD)  # type: ignore[arg-type]
