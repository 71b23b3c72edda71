"""Losses at and above those of guessing are said, and what of a model is audited otherwise than it trains."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import riskaudit
from riskaudit.auditing.alarm import loss_alarm

CHANCE = math.log(3)


@pytest.mark.parametrize(("mean", "word"), [(0.5 * CHANCE, None), (CHANCE, None), (13.0, "ALARM")])
def test_levels(mean, word) -> None:
    found = loss_alarm([mean - 0.1, mean + 0.1, math.nan], 3)
    assert bool(found) == (word is not None)
    assert word is None or word in found[0]


def net(scale: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
    with torch.no_grad():
        model[3].bias.copy_(torch.tensor([scale, 0.0, 0.0]))
    return model.eval()


def warnings(model: nn.Module, target: int) -> list[str]:
    samples = riskaudit.Samples.from_tensors(torch.rand(4, 6), torch.full((4,), target))
    return riskaudit.audit(model, samples, release="gaussian:0.1").warnings


def test_wrong_classes_alarm_and_right_ones_do_not() -> None:
    assert any(one.startswith("ALARM: the mean loss") for one in warnings(net(20.0), 1))
    assert not any("mean loss" in one for one in warnings(net(20.0), 0))
    assert not any("mean loss" in one for one in warnings(net(), 1))


def test_dropout_and_frozen_parameters_are_noted() -> None:
    model = net()
    assert any("1 dropout layers (first: 2) are audited as absent" in one for one in warnings(model, 0))
    assert not any("parameters are sent" in one for one in warnings(model, 0))
    model[0].requires_grad_(False)
    assert any("27 of 83 parameters are sent" in one for one in warnings(model, 0))
