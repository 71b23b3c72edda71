"""A guard that looks at received models lets nothing leave that was trained on one that looks changed to leak."""

from __future__ import annotations

import pytest
import received_cases
import torch
from guard_cases import PRIOR_STD, gradient
from torch import nn

from riskaudit.guard import AuditLog, Guard, Policy
from riskaudit.guard import received as received_module

POLICY = Policy(max_revealed=1.0, inspect_received=True)
WARNING = Policy(max_revealed=1.0, inspect_received=True, on_violation="warn", on_failure="warn")


def planted() -> nn.Module:
    model = received_cases.mlp()
    received_cases.plant_imprint(model, model.layers[2])
    return model


def batch(count: int = 16):
    return received_cases.inputs(count), torch.arange(count) % received_cases.CLASSES


def guard_of(model: nn.Module, policy: Policy = POLICY, **options) -> Guard:
    return Guard(model, "cross-entropy", policy, prior_std=PRIOR_STD, **options)


def reviewed(model: nn.Module, policy: Policy = POLICY, **options):
    return guard_of(model, policy, **options).review(batch(), gradient(model, batch()), local_steps=1)


@pytest.mark.parametrize("policy", [POLICY, WARNING], ids=["block", "warn"])
def test_an_update_of_a_changed_model_is_withheld_whatever_the_policy_says_of_failures(policy) -> None:
    decision = reviewed(planted(), policy)
    assert (decision.action, decision.update) == ("block", None)
    (reason,) = decision.reasons
    assert "imprint-layer at layers.2" in reason


def test_an_ordinary_model_is_reviewed_and_a_policy_without_it_doesnt_look() -> None:
    assert reviewed(received_cases.mlp()).action == "allow"
    assert reviewed(planted(), Policy(max_revealed=1.0)).action == "allow"


def test_a_round_of_local_training_is_withheld() -> None:
    model = planted()
    guard = guard_of(model, WARNING)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    recording = guard.record(optimizer)
    recording.loss(*batch()).backward()
    optimizer.step()
    decision = recording.review()
    assert decision.action == "block"
    assert "imprint-layer at layers.2" in decision.reasons[0]


def test_an_assessment_is_withheld() -> None:
    decision = guard_of(planted(), release="gaussian:1.0").assess(batch())
    assert (decision.action, decision.kept) == ("block", [])
    assert "imprint-layer" in decision.reasons[0]


def test_before_training_with_weights_that_only_came(tmp_path) -> None:
    model = received_cases.mlp()
    log = AuditLog(tmp_path / "log.jsonl", keys=tmp_path / "keys")
    guard = guard_of(model, log=log)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decision = guard.inspect(received_cases.inputs(), planted().state_dict())
    assert decision.action == "block"
    assert "imprint-layer at layers.2" in decision.reasons[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "imprint-layer" in (tmp_path / "log.jsonl").read_text()
    arrays = {name: value.numpy() for name, value in before.items()}
    assert guard.inspect(received_cases.inputs(), arrays).action == "allow"


@pytest.mark.parametrize(
    ("inputs", "received"),
    [(torch.zeros(4, 3), None), (received_cases.inputs(4), {"other": torch.zeros(1)}), ("nothing", None)],
    ids=["inputs that don't fit", "other weights", "no inputs"],
)
def test_what_cannot_be_inspected_is_not_trained_on(inputs, received) -> None:
    decision = guard_of(received_cases.mlp()).inspect(inputs, received)
    assert decision.action == "block"
    assert decision.reasons[0]


def test_weights_that_passed_are_looked_at_once_and_are_the_previous_rounds(monkeypatch) -> None:
    looked: list[bool] = []
    judge = received_module.judge_model

    def counted(model, inputs, *, previous=None, classifies):
        looked.append(previous is not None)
        assert classifies
        return judge(model, inputs, previous=previous)

    monkeypatch.setattr(received_module, "judge_model", counted)
    model = received_cases.mlp()
    guard = guard_of(model)
    assert guard.inspect(received_cases.inputs()).action == "allow"
    assert guard.review(batch(), gradient(model, batch()), local_steps=1).action == "allow"
    assert looked == [False]
    with torch.no_grad():
        model.layers[0].weight *= 12
    decision = guard.review(batch(), gradient(model, batch()), local_steps=1)
    assert looked == [False, True]
    assert "norm-drift at layers.0" in decision.reasons[0]
