"""A guard's decisions say what their numbers rest on, and let nothing out or in for it."""

from __future__ import annotations

import torch
from guard_cases import NOISE, gradient, guard_of, images, network

from riskaudit.guard import AuditLog, Policy


def biased(bias: float, right: int = 0):
    model = network()
    with torch.no_grad():
        model[-1].weight.mul_(0.01)
        model[-1].bias.zero_()[right] = bias
    return model


def decided(model, inputs, targets, **options):
    guard = guard_of(model, Policy(max_revealed=1.0), **options)
    return guard.review((inputs, targets), gradient(model, (inputs, targets), NOISE))


def test_losses_at_and_above_guessing_are_told_and_trained_ones_are_not(tmp_path) -> None:
    inputs, targets = images()[0], torch.zeros(6, dtype=torch.long)
    log = AuditLog(tmp_path / "l.jsonl", keys=tmp_path / "keys")
    untrained = decided(biased(0.0), inputs, targets, log=log)
    assert untrained.action == "allow"
    assert "no better than guessing among 4 classes" in untrained.warnings[0]
    assert next(iter(log.entries()))["warnings"] == untrained.warnings
    assert decided(biased(5.0), inputs, targets).warnings == []
    assert decided(biased(20.0, right=1), inputs, targets).warnings[0].startswith("ALARM")


def test_samples_that_the_prior_hardly_allows_are_named() -> None:
    inputs, targets = images()[0], torch.zeros(6, dtype=torch.long)
    inputs[2] *= 30
    decision = decided(biased(5.0), inputs, targets)
    told = next(one for one in decision.warnings if "next to impossible" in one)
    assert decision.exposures[2].id in told
    assert decision.exposures[1].id not in told
    inputs[2] *= 10
    blocked = decided(biased(5.0), inputs, targets)
    assert (blocked.action, blocked.update) == ("block", None)
    assert "contradict the prior" in blocked.reasons[0]
