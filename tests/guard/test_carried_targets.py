"""Targets that carry the input: the last layer's gradient gives them away, so the guard withholds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from guard_cases import images
from torch import Tensor, nn

from riskaudit.guard import Guard, Policy, SecureNoise

STD = 0.05
POLICY = Policy(max_revealed=0.5, max_gradients=None)


def network(inputs: int, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs))
    # An autoencoder at the beginning of its training tells next to nothing through its first layer.
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1e-2)
    return model


def review(inputs: Tensor, targets: Tensor, policy: Policy = POLICY, **options):  # type: ignore[no-untyped-def]
    model = network(inputs[0].numel(), targets[0].numel())
    flat = targets.flatten(1)
    guard = Guard(model, "mse", policy, prior_std=0.3, release=f"gaussian:{STD}", local_steps=1, **options)
    gradients = torch.autograd.grad(F.mse_loss(model(inputs), flat), list(model.parameters()))
    noise = SecureNoise("gaussian", STD)
    return guard.confirm(guard.review((inputs, flat), [noise.added(one) for one in gradients]))


INPUTS = images(4)[0]
OTHERS = images(4, seed=7)[0]
TARGETS = {
    "the input": INPUTS,
    "its negative": 1 - INPUTS,
    "half of it and a little": INPUTS * 0.5 + 0.25,
    "the input and more": torch.cat([INPUTS, OTHERS], 1),
    "twice as large": F.interpolate(INPUTS, scale_factor=2.0, mode="bilinear"),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("count", [1, 4])
def test_an_update_that_gives_away_the_input_by_its_target_is_withheld(name, count) -> None:
    decision = review(INPUTS[:count], TARGETS[name][:count])
    assert (decision.action, decision.update) == ("block", None)
    assert any("its target carries its input" in reason for reason in decision.reasons)
    assert any("known to the attacker" in warning for warning in decision.warnings)


def test_other_targets_pass_with_a_warning() -> None:
    decision = review(INPUTS, OTHERS)
    assert decision.action == "allow", decision.reasons
    assert [warning for warning in decision.warnings if "known to the attacker" in warning]


def test_noise_can_not_mend_it_and_leaving_out_can(tmp_path) -> None:
    targets = OTHERS.clone()
    targets[0] = INPUTS[0]
    noisy = Policy(max_revealed=0.5, max_gradients=None, on_violation="sanitise")
    assert review(INPUTS, targets, noisy).action == "block"
    dropped = review(
        INPUTS, targets, Policy(max_revealed=0.5, max_gradients=None, on_violation="sanitise", sanitiser="drop")
    )
    assert (dropped.action, dropped.dropped) == ("sanitise", 1)
    assert len(dropped.exposures) == 3
    counted = review(
        INPUTS, targets, Policy(max_revealed=0.5, max_total_revealed=0.9, max_unassessed=1.0, max_gradients=None),
        ledger=tmp_path / "ledger.db",
    )  # fmt: skip
    assert counted.action == "allow"
    assert [one.total_revealed is None for one in counted.exposures] == [True, False, False, False]
