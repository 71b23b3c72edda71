"""A server that plants an imprint (Fowl et al., "Robbing the Fed", ICLR 2022): seen, named and withheld."""

from __future__ import annotations

import pytest
import torch
from cases import digits
from torch import nn

import riskaudit
from riskaudit.guard import Guard, Policy
from riskaudit.inputs import Samples

COUNT, WIDTH = 12, 64


def imprinted() -> nn.Sequential:
    """Every unit asks for the brightness, with thresholds at its quantiles; what follows weighs all units alike."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    brightness = digits(200).inputs.float().flatten(1).mean(1)
    thresholds = torch.quantile(brightness, torch.linspace(0, 1, WIDTH + 2)[1:-1])
    with torch.no_grad():
        model[1].weight.fill_(1 / 64)
        model[1].bias.copy_(-thresholds)
        model[3].weight.copy_(model[3].weight[:, :1].expand(-1, WIDTH))
    return model.eval()


def between_thresholds(model: nn.Sequential) -> set[str]:
    """Samples that are alone between two neighbouring thresholds, or above the last."""
    brightness = digits(COUNT).inputs.float().flatten(1).mean(1)
    bins = torch.bucketize(brightness, -model[1].bias.detach())
    return {str(place) for place in range(COUNT) if int((bins == bins[place]).sum()) == 1 and bins[place] > 0}


def test_the_inspection_flags_the_layer() -> None:
    batch = digits(64)
    result = riskaudit.inspect_received(imprinted(), Samples.from_tensors(batch.inputs, batch.targets))
    assert result.flagged
    assert ("imprint-layer", "1") in {(row.id, row.layer) for row in result.flags}


@pytest.mark.parametrize("release", ["mean:all", "local:epochs=1:batch=12:lr=0.1"])
def test_the_scan_names_who_is_in_the_clear(release: str) -> None:
    model, batch = imprinted(), digits(COUNT)
    result = riskaudit.audit(
        model, Samples.from_tensors(batch.inputs, batch.targets), release=release, proxies=("gradient_norm",)
    )
    (finding,) = [each for each in result.checks if each.id == "singleton-unit" and each.layer == "1"]
    expected = between_thresholds(model)
    assert len(expected) >= 6
    assert set(finding.sample_ids) == expected
    assert finding.details["largest_relative_error"] < 1e-6


def test_the_guard_withholds() -> None:
    model, batch = imprinted(), digits(COUNT)
    inputs, targets = batch.inputs.float(), batch.targets
    policy = Policy(max_revealed=1.0, forbid_checks=("singleton-unit",))
    guard = Guard(model, "cross-entropy", policy, prior_std=0.3, local_steps=1)
    loss = nn.functional.cross_entropy(model(inputs), targets)
    decision = guard.review((inputs, targets), torch.autograd.grad(loss, list(model.parameters())))
    assert decision.action == "block"
    assert any("singleton-unit" in reason for reason in decision.reasons)
