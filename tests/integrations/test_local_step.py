"""Weights, differences and gradients are one update to the guard, and nothing else gets past with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from step_cases import ENOUGH, LIMIT, STEP_SIZE, TOO_LITTLE, arrays, batch, gradient, guard_of, network, train

from riskaudit.errors import GuardError, SettingsError
from riskaudit.integrations.local_step import LocalStep, review

KINDS = ["weights", "difference", "gradient"]


def exchanged(kind, noise_std, step_size=STEP_SIZE):
    """Model after training, what was received, what is to be sent."""
    model = network()
    received = arrays(model)
    torch.manual_seed(3)
    if kind == "gradient":
        return model, received, {name: value.numpy() for name, value in gradient(model, noise_std).items()}
    train(model, noise_std, step_size)
    after = arrays(model)
    return model, received, after if kind == "weights" else {name: after[name] - received[name] for name in after}


def reviewed(kind, noise_std, step_size=STEP_SIZE, change=None, **policy):
    model, received, outgoing = exchanged(kind, noise_std, step_size)
    if change is not None:
        change(outgoing)
    step = LocalStep(guard_of(model, noise_std, **policy), batch(), None if kind == "gradient" else step_size)
    return model, received, outgoing, review(step, received, outgoing, difference=kind == "difference")


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_within_the_policy_leaves_bit_by_bit(kind) -> None:
    model, _, outgoing, decision = reviewed(kind, ENOUGH)
    before = arrays(model)
    assert decision.action == "allow", decision.reasons
    assert list(decision.update) == list(outgoing)
    for name, value in outgoing.items():
        assert decision.update[name].dtype == value.dtype
        np.testing.assert_array_equal(decision.update[name], value)
    for name, value in arrays(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg="the review left its weights in the model")


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_over_the_limit_is_withheld(kind) -> None:
    _, _, _, decision = reviewed(kind, TOO_LITTLE)
    assert decision.update is None
    assert decision.action == "block"
    assert "reveal more than" in decision.reasons[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sanitised_update_leaves_in_the_form_it_had(kind) -> None:
    _, received, outgoing, decision = reviewed(kind, TOO_LITTLE, on_violation="sanitise")
    assert decision.action == "sanitise", decision.reasons
    changed = 0.0
    for name, value in outgoing.items():
        assert decision.update[name].dtype == value.dtype
        if name in dict(network().named_parameters()):
            noise = (decision.update[name] - value) / (1.0 if kind == "gradient" else STEP_SIZE)
            changed += float(np.square(noise.astype(np.float64)).sum())
        else:
            kept = received[name] if kind == "weights" else np.zeros_like(received[name])
            np.testing.assert_array_equal(decision.update[name], kept)
    count = sum(value.numel() for value in network().parameters())
    assert math.sqrt(changed / count) == pytest.approx(decision.noise_std, rel=0.5)
    assert max(one.revealed.high for one in decision.exposures) <= LIMIT


def test_numbered_arrays_are_taken_in_the_models_order() -> None:
    model, received, outgoing = exchanged("weights", ENOUGH)
    step = LocalStep(guard_of(model, ENOUGH), batch(), STEP_SIZE)
    numbered = [{str(place): value for place, value in enumerate(one.values())} for one in (received, outgoing)]
    decision = review(step, *numbered)
    assert decision.action == "allow", decision.reasons
    assert list(decision.update) == list(numbered[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda sent: sent.update(extra=np.zeros(3)), "other names"),
        (lambda sent: sent.pop("0.bias"), "other names"),
        (lambda sent: sent.update({"1.running_mean": sent["1.running_mean"] + 1}), "isn't trainable"),
        (lambda sent: sent.update({"0.bias": np.zeros((5, 2), np.float32)}), "shape"),
    ],
    ids=["an entry more", "an entry less", "running statistics", "a shape"],
)
def test_what_the_guard_can_not_review_is_refused(change, words) -> None:
    with pytest.raises(GuardError, match=words):
        reviewed("weights", ENOUGH, change=change)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_withheld(value) -> None:
    _, _, _, decision = reviewed("weights", ENOUGH, change=lambda sent: sent["0.bias"].fill(value))
    assert decision.update is None


def test_several_local_steps_are_not_one_gradient() -> None:
    model = network()
    received = arrays(model)
    for _ in range(4):
        train(model, ENOUGH)
    decision = review(LocalStep(guard_of(model, ENOUGH), batch(), STEP_SIZE), received, arrays(model))
    assert decision.update is None
    assert "isn't noise" in decision.reasons[0]


@pytest.mark.parametrize(("step_size", "action"), [(1e-2, "warn"), (1e-7, "block")])
def test_rounding_of_weights_is_allowed_for_until_it_hides_the_gradient(step_size, action) -> None:
    model = network()
    received = arrays(model)
    train(model, 0.0, step_size)
    guard = guard_of(model, TOO_LITTLE, on_violation="warn")
    guard.client.noise = None
    decision = review(LocalStep(guard, batch(), step_size), received, arrays(model))
    assert decision.action == action, decision.reasons


@pytest.mark.parametrize("step_size", [0.0, -1.0, math.nan, math.inf])
def test_a_step_size_that_is_none_is_refused(step_size) -> None:
    with pytest.raises(SettingsError, match="step_size"):
        LocalStep(guard_of(network(), ENOUGH), batch(), step_size)
