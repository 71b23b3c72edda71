"""Batches whose gradient isn't the mean of their samples': true shares, or withheld by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from guard_cases import CLASSES, NOISE, gradient, guard_of, images, network, revealed, spectra
from torch import Tensor, nn

from riskaudit.guard import Guard, Policy
from riskaudit.release.shares import shares_of

WEIGHTS = torch.tensor([1.0, 1.0, 100.0, 1.0])


def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, weight=WEIGHTS.to(outputs.dtype))


def hardest(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none").topk(min(2, len(outputs)))[0].mean()


def centre(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - outputs.mean(0)).square().mean() + F.cross_entropy(outputs, targets)


def update_of(model: nn.Module, batch, loss, noise: float) -> list[Tensor]:
    gradients = torch.autograd.grad(loss(model(batch[0]), batch[1]), list(model.parameters()))
    generator = torch.Generator().manual_seed(1)
    return [one + noise * torch.randn(one.shape, generator=generator) for one in gradients]


def reviewed(loss, noise: float = NOISE, limit: float = 0.9, **options):
    model, batch = network(), images()
    release = f"gaussian:{noise}" if noise else "gradient"
    policy = options.pop("policy", Policy(max_revealed=limit, max_gradients=None))
    guard = Guard(model, loss, policy, prior_std=0.3, release=release, local_steps=1, **options)
    return guard.review(batch, update_of(model, batch, loss, noise))


def test_a_sample_with_a_larger_share_sees_less_noise() -> None:
    model, (inputs, targets) = network(), images()
    shares = WEIGHTS[targets] / WEIGHTS[targets].sum()
    # The loss of a single sample has no weight left, so its eigenvalues are those of plain cross-entropy.
    eigenvalues = spectra(model, (inputs, targets))
    truth = [float(revealed(one[None], NOISE / float(share))) for one, share in zip(eigenvalues, shares, strict=True)]
    policy = Policy(max_revealed=1.0, max_gradients=200)
    decision = reviewed(weighted, policy=policy)
    assert decision.action == "allow", decision.reasons
    for one, value in zip(decision.exposures, truth, strict=True):
        assert one.revealed is not None
        assert one.revealed.low - 1e-4 <= value <= one.revealed.high + 1e-4
    assert max(truth) > 3 * float(revealed(eigenvalues, NOISE)[truth.index(max(truth))])
    assert reviewed(weighted, limit=0.95 * max(truth)).action == "block"


@pytest.mark.parametrize("loss", [hardest, centre], ids=["hardest", "centre"])
def test_losses_without_constant_shares_are_withheld_by_name(loss) -> None:
    decision = reviewed(loss)
    assert decision.action == "block"
    assert "sum of its samples' losses" in decision.reasons[0] or "out of the update" in decision.reasons[0]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (F.cross_entropy, [1 / 6] * 6),
        (lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1), [1 / 6] * 6),
        (lambda o, t: 7 * F.cross_entropy(o, t), [1 / 6] * 6),
        (lambda o, t: F.cross_entropy(o, t, reduction="sum"), [1.0] * 6),
        (lambda o, t: F.cross_entropy(o, t, reduction="none"), [1 / 6] * 6),
        (lambda o, t: F.cross_entropy(o, t, ignore_index=3), [0.2, 0.2, 0.2, 0.0, 0.2, 0.2]),
        (weighted, [1 / 105, 1 / 105, 100 / 105, 1 / 105, 1 / 105, 1 / 105]),
        (hardest, None),
        (centre, None),
    ],
)
def test_shares(loss, expected) -> None:
    torch.manual_seed(0)
    shares = shares_of(loss, 2 * torch.randn(6, 4), images()[1])
    if expected is None:
        assert shares is None
    else:
        assert shares is not None
        assert shares.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_void_pixels_give_shares_and_dice_over_the_batch_none() -> None:
    torch.manual_seed(0)
    outputs, masks = torch.randn(3, 2, 4, 4), torch.randint(0, 2, (3, 4, 4))
    masks[0, :2] = 255
    shares = shares_of(lambda o, t: F.cross_entropy(o, t, ignore_index=255), outputs, masks)
    assert shares is not None
    assert shares.tolist() == pytest.approx([0.2, 0.4, 0.4], rel=1e-4)

    def dice(o: Tensor, t: Tensor) -> Tensor:
        p, t = o.softmax(1)[:, 1], t.to(o.dtype)
        return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)

    assert shares_of(dice, outputs, masks.clamp_max(1)) is None


def test_a_sample_that_the_loss_leaves_out_is_withheld() -> None:
    decision = reviewed(lambda o, t: F.cross_entropy(o, t, ignore_index=3))
    assert decision.action == "block"


def test_weights_are_withheld_where_samples_are_clipped_first() -> None:
    model, batch = network(), images()
    guard = Guard(
        model, weighted, Policy(max_revealed=0.9), prior_std=0.3, release="clip:1.0,gaussian:10.0", local_steps=1
    )
    decision = guard.review(batch, [torch.randn(one.shape) * 10.0 for one in model.parameters()])
    assert decision.action == "block"
    assert "weights its samples" in decision.reasons[0]


class Rescaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, inputs: Tensor) -> Tensor:
        h = self.net(inputs)
        return h / h.norm() if len(h) > 3 else h


@pytest.mark.parametrize("noise", [None, NOISE])
def test_samples_that_depend_on_their_batch_are_withheld(noise) -> None:
    model, batch = Rescaled(), images()
    decision = guard_of(model, Policy(max_revealed=1.0), noise).review(batch, gradient(model, batch, noise or 0.0))
    assert decision.action == "block"
    assert "depends on the other samples" in decision.reasons[0]


def local(steps: int, noise: float) -> list[Tensor]:
    """The difference after some steps of SGD, over the step size, with noise."""
    model, (inputs, targets) = network(), images()
    start = [one.detach().clone() for one in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return [
        (old - new.detach()) / 0.02 + noise * torch.randn(new.shape)
        for old, new in zip(start, model.parameters(), strict=True)
    ]


def test_noise_that_hides_local_steps_withholds_unless_somebody_vouches() -> None:
    noise, batch = 1.0, images()
    words = "can't be told apart from one step at this noise"
    for steps in (1, 3):
        decision = guard_of(network(), Policy(max_revealed=0.9), noise, local_steps=None).review(
            batch, local(steps, noise)
        )
        assert decision.action == "block"
        assert words in decision.reasons[0]
    accepting = Policy(max_revealed=0.9, unproven_step="accept")
    assert guard_of(network(), accepting, noise, local_steps=None).review(batch, local(1, noise)).action == "allow"
    vouched = guard_of(network(), Policy(max_revealed=0.9), noise, local_steps=None)
    assert vouched.review(batch, local(1, noise), local_steps=1).action == "allow"


@pytest.mark.parametrize("release", ["gaussian:1.0", "mean:6,gaussian:1.0"])
def test_one_step_has_to_be_said_of_a_batch_whose_samples_mix(release) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES))
    batch = images()
    for said, action in ((None, "block"), (1, "allow")):
        update = gradient(model, batch, noise=1.0)
        decision = guard_of(model, Policy(max_revealed=0.9), release=release, local_steps=said).review(batch, update)
        assert decision.action == action, decision.reasons


@pytest.mark.parametrize("steps", [0, 2, 5, True])
def test_several_local_steps_are_withheld_whatever_the_policy_accepts(steps) -> None:
    policy = Policy(max_revealed=0.9, unproven_step="accept")
    decision = guard_of(network(), policy, 1.0, local_steps=steps).review(images(), local(1, 1.0))
    assert decision.action == "block"
    assert "one local step" in decision.reasons[0]


def test_without_noise_the_update_shows_its_steps_itself() -> None:
    policy = Policy(max_revealed=1.0)
    assert guard_of(network(), policy, None, local_steps=None).review(images(), local(1, 0.0)).action == "allow"
    decision = guard_of(network(), policy, None, local_steps=None).review(images(), local(3, 0.0))
    assert "the gradient of this batch" in decision.reasons[0]


class OneNumber(nn.Module):
    """Outputs [B]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


@pytest.mark.parametrize(
    ("loss", "binary"),
    [(nn.MSELoss(), False), (nn.BCEWithLogitsLoss(), True), (nn.HuberLoss(), False), ("mse", False)],
    ids=["mse", "bce", "huber", "by name"],
)
def test_outputs_may_be_one_number_per_sample(loss, binary) -> None:
    model, (inputs, targets) = OneNumber(), images()
    values = (targets % 2).float() if binary else targets / 3
    function = F.mse_loss if loss == "mse" else loss
    guard = Guard(model, loss, Policy(max_revealed=1.0), prior_std=0.3, release=f"gaussian:{NOISE}", local_steps=1)
    decision = guard.review((inputs, values), update_of(model, (inputs, values), function, NOISE))
    assert decision.action == "allow", decision.reasons
    column = Guard(model.net, loss, Policy(max_revealed=1.0), prior_std=0.3, release=f"gaussian:{NOISE}", local_steps=1)
    same = column.review((inputs, values[:, None]), update_of(model.net, (inputs, values[:, None]), function, NOISE))
    assert same.action == "allow", same.reasons
    for one, other in zip(decision.exposures, same.exposures, strict=True):
        assert one.revealed.low <= other.revealed.high
        assert other.revealed.low <= one.revealed.high
