"""The guard in front of a PyTorch optimizer."""

from __future__ import annotations

import pytest
import torch
from integration_cases import LENIENT, STD, STRICT, backward, gradient, small_batch, small_guard, small_model, weights

from riskaudit.errors import GuardError, SettingsError
from riskaudit.guard import AuditLog, Policy
from riskaudit.integrations.gradients import add_noise
from riskaudit.integrations.pytorch import StepGuard


def guarded(policy=LENIENT, **options):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    return model, optimizer, StepGuard(small_guard(model, policy, **options), optimizer)


def noisy_gradient(model) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    backward(model, small_batch())
    add_noise(model, STD)


def test_a_step_within_the_policy_is_the_unguarded_step() -> None:
    model, optimizer, step_guard = guarded()
    noisy_gradient(model)
    plain = small_model()
    other = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for own, given in zip(plain.parameters(), model.parameters(), strict=True):
        own.grad = given.grad.clone()
    step_guard.expect(small_batch())
    optimizer.step()
    other.step()
    assert step_guard.decision.action == "allow"
    assert torch.equal(weights(model), weights(plain))


def test_a_withheld_step_changes_neither_weights_nor_momentum_and_the_next_one_works(tmp_path) -> None:
    model, optimizer, step_guard = guarded(STRICT, log=tmp_path / "log")
    before = weights(model)
    noisy_gradient(model)
    step_guard.expect(small_batch())
    optimizer.step()
    assert step_guard.decision.action == "block"
    assert torch.equal(weights(model), before)
    assert gradient(model) is None
    assert not optimizer.state
    step_guard._guard.policy = LENIENT
    noisy_gradient(model)
    step_guard.expect(small_batch())
    optimizer.step()
    assert step_guard.decision.action == "allow"
    assert not torch.equal(weights(model), before)
    assert [entry["decision"] for entry in AuditLog(tmp_path / "log").entries()] == ["block", "allow"]


def test_a_sanitised_gradient_is_what_the_optimizer_uses() -> None:
    model, optimizer, step_guard = guarded(Policy(max_revealed=0.001, on_violation="sanitise"))
    noisy_gradient(model)
    before, given = weights(model), gradient(model)
    step_guard.expect(small_batch())
    optimizer.step()
    decision = step_guard.decision
    assert decision.action == "sanitise"
    sent = torch.cat([one.reshape(-1) for one in decision.update])
    assert torch.equal(gradient(model), sent)
    assert not torch.equal(sent, given)
    torch.testing.assert_close(weights(model), before - 0.1 * (sent + 0.1 * before))


def without_batch(model, step_guard) -> None:
    noisy_gradient(model)


def with_a_foreign_batch(model, step_guard) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    step_guard.expect(small_batch())


def without_noise(model, step_guard) -> None:
    backward(model, small_batch())
    step_guard.expect(small_batch())


def with_nan(model, step_guard) -> None:
    noisy_gradient(model)
    next(model.parameters()).grad[0, 0] = torch.nan
    step_guard.expect(small_batch())


def with_a_broken_batch(model, step_guard) -> None:
    noisy_gradient(model)
    step_guard.expect((None,))


@pytest.mark.parametrize(
    "spoil", [without_batch, with_a_foreign_batch, without_noise, with_nan, with_a_broken_batch],
    ids=lambda spoil: spoil.__name__,
)  # fmt: skip
def test_whatever_goes_wrong_withholds(spoil) -> None:
    model, optimizer, step_guard = guarded()
    before = weights(model)
    spoil(model, step_guard)
    optimizer.step()
    assert step_guard.decision.action == "block"
    assert torch.equal(weights(model), before)


def test_a_batch_counts_for_one_step() -> None:
    model, optimizer, step_guard = guarded()
    noisy_gradient(model)
    step_guard.expect(small_batch())
    optimizer.step()
    before = weights(model)
    optimizer.step()
    assert step_guard.decision.action == "block"
    assert "not handed over" in step_guard.decision.reasons[0]
    assert torch.equal(weights(model), before)


def test_a_closure_stops_the_step() -> None:
    model, optimizer, step_guard = guarded()
    before = weights(model)
    noisy_gradient(model)
    step_guard.expect(small_batch())
    with pytest.raises(GuardError, match="without a closure"):
        optimizer.step(lambda: noisy_gradient(model))
    assert step_guard.decision.action == "block"
    assert torch.equal(weights(model), before)


def test_other_parameters_are_refused() -> None:
    model = small_model()
    with pytest.raises(SettingsError, match="exactly"):
        StepGuard(small_guard(model), torch.optim.SGD([next(model.parameters())], lr=0.1))


def test_parameters_added_later_withhold() -> None:
    model, optimizer, step_guard = guarded()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    noisy_gradient(model)
    step_guard.expect(small_batch())
    optimizer.step()
    assert step_guard.decision.action == "block"


def test_closed_it_guards_no_more() -> None:
    model, optimizer, step_guard = guarded(STRICT)
    before = weights(model)
    step_guard.close()
    noisy_gradient(model)
    optimizer.step()
    assert step_guard.decision is None
    assert not torch.equal(weights(model), before)


def test_noise_is_fresh_and_of_the_size_asked_for() -> None:
    model = torch.nn.Linear(200, 200)
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.grad = None
        add_noise(model, 0.1)
        draws.append(gradient(model))
    assert not torch.equal(*draws)
    assert 0.098 < float(draws[0].std()) < 0.102
