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
    gradients = torch.autograd.grad(loss(model(batch[0]), batch[1]), list(model.parameters()))
    noise = SecureNoise("gaussian", NOISE)
    return [noise.added(one) for one in gradients]


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
    assert 'unknown_layers = "differentiate"' in decision.reasons[0]
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
    assert "freeze" not in decision.reasons[0]
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


def low_precision() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, low_precision])
@pytest.mark.parametrize("held", [False, True], ids=["made outside", "made inside"])
def test_a_review_is_the_same_whatever_it_is_called_under(mode, held) -> None:
    model, batch = network(), images()
    update = update_of(model, F.cross_entropy, batch)
    outside = guard_of(model, OPEN).review(batch, update)
    guard = guard_of(model, OPEN)
    with mode():
        given = tuple(one * 1 for one in batch) if held else batch
        sent = [one * 1 for one in update] if held else update
        guard.prepare(given)
        assert guard.assess(given).action == "allow"
        decision = guard.confirm(guard.review(given, sent))
    assert decision.action == outside.action == "allow", decision.reasons
    for one, other in zip(decision.exposures, outside.exposures, strict=True):
        assert one.revealed.low <= other.revealed.high
        assert other.revealed.low <= one.revealed.high


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = network()
    assert guard_of(model, OPEN).review(images(), update_of(network(), F.cross_entropy, images())).action == "allow"


class LowPrecision(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with low_precision():
            return self.net(x).float()


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 4))


@pytest.mark.parametrize("make", [network, perceptron])
def test_a_forward_in_low_precision_is_told_to_leave_it_out(make) -> None:
    model, batch = LowPrecision(make()), images()
    update = update_of(model, F.cross_entropy, batch)
    decision = guard_of(model, OPEN).review(batch, update)
    assert decision.action == "block"
    assert "low precision (torch.autocast" in decision.reasons[0]
    assert "other samples" not in decision.reasons[0]
    decision = reviewed(model.net, F.cross_entropy, batch)
    assert decision.action == "allow", decision.reasons


class Squeezed(nn.Module):
    def __init__(self, *axis: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.axis = nn.Linear(64, 1), axis

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)).squeeze(*self.axis)


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t, *axis: F.binary_cross_entropy_with_logits(o.squeeze(*axis), t),
        lambda o, t, *axis: F.binary_cross_entropy(torch.squeeze(o, *axis).sigmoid(), t),
        lambda o, t, *axis: F.binary_cross_entropy_with_logits(o, t[:, None].squeeze(*axis)[:, None]),
    ],
)
def test_a_loss_that_squeezes_the_batch_away_is_told_so(loss) -> None:
    inputs, targets = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    batch = inputs, (targets % 2).float()
    decision = reviewed(model, loss, batch)
    assert decision.action == "block"
    assert "write squeeze(-1)" in decision.reasons[0]
    decision = reviewed(model, lambda o, t: loss(o, t, -1), batch)
    assert decision.action == "allow", decision.reasons


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_a_forward_that_squeezes_the_batch_away_is_told_so(loss) -> None:
    inputs, targets = images()
    batch = inputs, (targets % 2).float()
    decision = reviewed(Squeezed(), loss, batch)
    assert decision.action == "block"
    assert "write squeeze(-1) in the forward" in decision.reasons[0]
    decision = reviewed(Squeezed(-1), loss, batch)
    assert decision.action == "allow", decision.reasons


def test_targets_that_the_loss_does_not_take_are_told_by_their_shape() -> None:
    model, (inputs, targets) = network(), images()
    update = update_of(model, F.cross_entropy, (inputs, targets))
    decision = guard_of(model, OPEN).review((inputs, targets[:, None]), update)
    assert decision.action == "block"
    assert "shape [6, 1] in torch.int64" in decision.reasons[0]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x, t: {"image": x, "label": t}, "found a dict"),
        (lambda x, t: ({"image": x}, t), "found dict and Tensor"),
        (lambda x, t: (x, ["cat"] * len(t)), "found Tensor and list"),
        (lambda x, t: 7, "found a int"),
    ],
)
def test_batches_that_are_no_pairs_are_told_what_to_be(change, found) -> None:
    model, batch = network(), images()
    decision = guard_of(model, OPEN).review(change(*batch), update_of(model, F.cross_entropy, batch))
    assert decision.action == "block"
    assert found in decision.reasons[0]
    assert "hand over the two tensors" in decision.reasons[0]
