"""Ordinary models and training code: reviewed, or refused with advice that works."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from guard_cases import NOISE, guard_of, images, network
from torch import Tensor, nn

from riskaudit.guard import Decision, Guard, Policy, SecureNoise

OPEN = Policy(max_revealed=1.0)
DIFFERENTIATE = Policy(max_revealed=1.0, unknown_layers="differentiate")
Loss = Callable[[Tensor, Tensor], Tensor]


def update_of(model: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss(model(batch[0]), batch[1]), list(model.parameters()))
    noise = SecureNoise("gaussian", NOISE)
    return [noise.added(one) for one in found]


def reviewed(model: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor], policy: Policy = OPEN) -> Decision:
    guard = Guard(model, loss, policy, prior_std=0.3, release=f"gaussian:{NOISE}", local_steps=1)
    return guard.confirm(guard.review(batch, update_of(model, loss, batch)))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.out = kind(8, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x[:, 0])[0][:, -1])


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_recurrent_layers_follow_the_advice(kind) -> None:
    model = Recurrent(kind)
    decision = reviewed(model, F.cross_entropy, images())
    assert decision.action == "block"
    assert 'set unknown_layers = "differentiate"' in decision.reasons[0]
    decision = reviewed(model, F.cross_entropy, images(), DIFFERENTIATE)
    assert decision.action == "allow", decision.reasons


def gaussian(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.gaussian_nll_loss(outputs[:, :1], targets, F.softplus(outputs[:, 1:2]))


def checked(outputs: Tensor, targets: Tensor) -> Tensor:
    assert bool(outputs.isfinite().all())
    return F.mse_loss(outputs[:, :1], targets)


def read(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = F.mse_loss(outputs[:, :1], targets, reduction="none")
    return losses.mean() if losses.max().item() > 0 else losses.sum()


@pytest.mark.parametrize("loss", [gaussian, checked, read])
def test_losses_that_look_at_values_follow_the_advice(loss) -> None:
    inputs, targets = images()
    batch = inputs, targets[:, None] / 3 + 0.1
    decision = reviewed(network(), loss, batch)
    assert decision.action == "block"
    assert 'unknown_layers = "differentiate"' in decision.reasons[0]
    decision = reviewed(network(), loss, batch, DIFFERENTIATE)
    assert decision.action == "allow", decision.reasons


@pytest.mark.parametrize("kind", ["DataParallel", "scripted", "traced"])
@pytest.mark.filterwarnings("ignore")
def test_wrappers_are_told_to_hand_over_the_module(kind) -> None:
    model, batch = network(), images()
    wrapped, advice = {
        "DataParallel": lambda: (nn.DataParallel(model), "hand over its .module"),
        "scripted": lambda: (torch.jit.script(model), "hand over the eager module"),
        "traced": lambda: (torch.jit.trace(model, batch[0]), "hand over the eager module"),
    }[kind]()
    update = update_of(wrapped, F.cross_entropy, batch)
    decision = guard_of(wrapped, OPEN).review(batch, update)
    assert decision.action == "block"
    assert advice in decision.reasons[0]
    mended = wrapped.module if kind == "DataParallel" else copy.deepcopy(model)
    decision = guard_of(mended, OPEN).review(batch, update)
    assert decision.action == "allow", decision.reasons
