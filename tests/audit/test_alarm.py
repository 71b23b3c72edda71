"""Losses at and above those of guessing are said, and what of a model is audited otherwise than it trains."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

import riskaudit
from riskaudit.audit.alarm import loss_alarm

CHANCE = math.log(3)


@pytest.mark.parametrize(
    ("mean", "word"),
    [(0.5 * CHANCE, None), (0.9 * CHANCE, None), (0.99 * CHANCE, "no better"), (CHANCE, "no better"), (13.0, "ALARM")],
)
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
    assert any("guessing among 3 classes" in one for one in warnings(net(), 1))


def test_dropout_and_frozen_parameters_are_noted() -> None:
    model = net()
    assert any("1 dropout layers (first: 2)" in one for one in warnings(model, 0))
    assert not any("parameters are sent" in one for one in warnings(model, 0))
    model[0].requires_grad_(False)
    assert any(re.search("27 of 83 parameters .*frozen", one) for one in warnings(model, 0))


def test_parameters_that_nothing_uses_are_noted() -> None:
    model = net()
    model.register_parameter("spare", nn.Parameter(torch.zeros(7)))
    assert any(re.search(r"83 of 90 parameters .*unused \(7 ", one) for one in warnings(model, 0))
    model[0].requires_grad_(False)
    assert any(re.search("27 of 90 parameters .*frozen or unused", one) for one in warnings(model, 0))


@pytest.mark.parametrize(
    ("mean", "training", "told"), [(2.0, 0.1, True), (0.5, 0.1, False), (2.0, 0.9, False), (2.0, None, False)]
)
def test_losses_are_held_against_those_of_training(mean, training, told) -> None:
    found = loss_alarm([mean], None, training)
    assert bool(found) == told
    assert not told or "that the checkpoint's file names" in found[0]


@pytest.mark.parametrize(
    "beside", [{"loss": 0.01}, {"train_loss": torch.tensor(0.01)}, {"metrics": {"best_val_loss": 0.01}}]
)
def test_a_checkpoint_names_its_loss(tmp_path, beside) -> None:
    torch.save({"model": net(20.0).state_dict(), **beside}, tmp_path / "net.pt")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))\n"
    )
    checkpoint = riskaudit.load_checkpoint(tmp_path / "net.pt", arch=f"{tmp_path / 'net.py'}:make")
    assert checkpoint.training_loss == pytest.approx(0.01)
    samples = riskaudit.Samples.from_tensors(torch.rand(4, 6), torch.full((4,), 1))
    found = riskaudit.audit(checkpoint, samples, release="gaussian:0.1").warnings
    assert any("above the 0.01 that the checkpoint" in one for one in found)
