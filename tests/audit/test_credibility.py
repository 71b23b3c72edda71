"""Derivatives that can't be believed are never a number; those of honest networks always are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contracts.release_step import RelativeRounding, Rounding, Squashing, StraightThroughRounding
from scan_cases import DEMO
from torch import Tensor, nn

import riskaudit
from riskaudit.audit.credibility import check_code, examine
from riskaudit.audit.evidence import Evidence, Quotient
from riskaudit.errors import SamplesError
from riskaudit.guard import Guard, Policy
from riskaudit.jacobian import jacobian_maker
from riskaudit.priors import IsotropicPrior
from riskaudit.release import Batch, PerSampleRelease
from riskaudit.release.steps import STEPS

STD, NOISE, SIDE = 0.3, 1e-3, 12


class Net(nn.Module):
    def __init__(
        self, before: Callable[[Tensor], Tensor] = torch.clone, activation: Any = torch.tanh, gain: float = 1.0,
        bias: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(SIDE * SIDE, 24), nn.Linear(24, 10)
        self.before, self.activation = before, activation
        with torch.no_grad():
            self.first.weight.mul_(gain)
            if bias is not None:
                self.first.bias.fill_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.first(self.before(x.flatten(1)))))


class Scaled(torch.autograd.Function):
    """The identity, with a backward that says next to nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 1e-3 * gradient


class HalfDetached(Net):
    """The second layer's input in full view, the first's only half."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(SIDE * SIDE, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(torch.tanh(self.first(x)) + torch.tanh(self.other(x.detach())))


HIDDEN = {
    "round": lambda: Net(lambda x: torch.round(x * 255) / 255),
    "floor": lambda: Net(lambda x: torch.floor(x * 16) / 16),
    "threshold": lambda: Net(lambda x: (x > 0.2).to(x.dtype)),
    "where": lambda: Net(lambda x: torch.where(x > 0.2, torch.ones_like(x), torch.zeros_like(x))),
    "integers": lambda: Net(lambda x: (x * 255).int().to(x.dtype) / 255),
    "detach": lambda: Net(lambda x: x.detach()),
    "half detached": HalfDetached,
    "numpy": lambda: Net(lambda x: torch.from_numpy(x.detach().numpy().copy())),
    "custom backward": lambda: Net(Scaled.apply),
    "rounded activation": lambda: Net(activation=lambda h: (h * 8).round() / 8),
}
# Flat at the samples and not a step away; a rare unit in its transition shows for a sample.
FLAT = {
    "steep sigmoid": lambda: Net(activation=torch.sigmoid, gain=1e5),
    "saturated tanh": lambda: Net(activation=torch.tanh, gain=1e5),
}
HONEST = {
    "tanh": Net,
    "relu": lambda: Net(activation=torch.relu),
    "steeper sigmoid": lambda: Net(activation=torch.sigmoid, gain=20.0),
    "leaky": lambda: Net(activation=F.leaky_relu),
    "clamped": lambda: Net(lambda x: x.clamp(0.1, 0.9)),
    "normalised": lambda: Net(lambda x: (x - 0.13) / 0.3),
    "max-pool": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 10)
    ),
}


def batch_of(count: int = 4, dtype: torch.dtype = torch.float64) -> Batch:
    """Smooth images with a black border, where max-pooling ties."""
    generator = torch.Generator().manual_seed(0)
    places = torch.arange(SIDE, dtype=torch.float64)
    middle = 3 + (SIDE - 6) * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    along = (-(places - middle[..., None]).square() / 6).exp()
    inputs = along[:, 0, :, None] * along[:, 1, None, :]
    inputs = torch.where(inputs < 0.02, torch.zeros_like(inputs), inputs)
    return Batch(inputs[:, None].to(dtype), torch.arange(count) % 10)


def evidence_of(model: nn.Module, batch: Batch, release: str = "gradient") -> list[Evidence]:
    maker = jacobian_maker(PerSampleRelease(model.to(batch.inputs.dtype).eval(), F.cross_entropy, release), batch)
    flat = batch.inputs.flatten(1)
    drawn = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return examine(maker, batch, IsotropicPrior(0.0, STD).bind(batch.targets, flat), drawn)


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("release", ["gradient", "clip:0.5"])
def test_hidden_inputs_are_doubted(name: str, release: str) -> None:
    assert all(one.doubt(1e-4) for one in evidence_of(HIDDEN[name](), batch_of(), release))


@pytest.mark.parametrize("name", ["round", "threshold", "rounded activation"])
def test_rounding_is_that_of_what_is_released(name: str) -> None:
    """Of a gradient clipped to a millionth, in single precision."""
    found = evidence_of(HIDDEN[name](), batch_of(dtype=torch.float32), "clip:0.000001")
    assert all(one.doubt(1e-9) for one in found)


@pytest.mark.parametrize(("release", "doubted"), [("share:first.*", True), ("share:last.*", False), ("gradient", True)])
def test_a_layer_that_is_not_sent_gives_nothing_away(release: str, doubted: bool) -> None:
    """Its gradient would give the input to a thousandth."""
    found = evidence_of(Net(activation=torch.tanh), batch_of(), release)
    assert [one.doubt(1e-5, claimed_rmse=0.2) is not None for one in found] == [doubted] * 4


@pytest.mark.parametrize("name", FLAT)
def test_flat_at_the_sample_and_steep_a_step_away(name: str) -> None:
    doubts = [one.doubt(1e-4) for one in evidence_of(FLAT[name](), batch_of(8))]
    assert sum(doubt is not None for doubt in doubts) >= 7


def test_unit_that_is_dead_at_the_sample_and_alive_a_step_away() -> None:
    model, batch = Net(activation=torch.relu).double(), batch_of(1)
    with torch.no_grad():
        model.first.bias.copy_(-(model.first.weight @ batch.inputs[0].flatten()) - 0.01)
    (found,) = evidence_of(model, batch)
    assert found.doubt(1e-4)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("release", ["gradient", "clip:0.1,prune:0.9"])
@pytest.mark.parametrize("name", HONEST)
def test_honest_networks_are_believed(name: str, release: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, batch = HONEST[name](), batch_of(dtype=dtype)
    for _ in range(2):
        found = evidence_of(model, batch, release)
        for noise in (0.0, 1e-4, 1e-2):
            assert [one.doubt(noise) for one in found] == [None] * len(batch)
        optimiser = torch.optim.SGD(model.parameters(), 0.2)
        for _ in range(300):
            optimiser.zero_grad()
            F.cross_entropy(model(batch.inputs), batch.targets).backward()
            optimiser.step()


FLAT_STEPS = {"round": Rounding, "round-relative": RelativeRounding, "squash": Squashing}


@pytest.fixture(params=["structured", "generic"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Steps of tests are known, and J is made in one of two ways."""
    for name, step in {**FLAT_STEPS, "round-through": StraightThroughRounding}.items():
        monkeypatch.setitem(STEPS, name, step)
    return request.param


def release_evidence(kind: str, release: str, dtype: torch.dtype) -> list[Evidence]:
    batch, honest = batch_of(dtype=dtype), Net()
    # No entry of the gradient is 0, where a squashing isn't flat.
    batch = batch.with_inputs(batch.inputs + 0.05)
    maker = jacobian_maker(PerSampleRelease(honest.to(dtype).eval(), F.cross_entropy, release), batch)
    maker = maker if kind == "structured" else replace(maker, layout=None)
    flat = batch.inputs.flatten(1)
    drawn = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return examine(maker, batch, IsotropicPrior(0.0, STD).bind(batch.targets, flat), drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("release", "noise"),
    [
        ("round:0.000001", 1e-3),
        ("clip:0.5,round:0.000001", 1e-3),
        ("round:0.000001,prune:0.5,clip:0.5", 1e-3),
        ("squash:0.000000001", 1e-11),
        ("round-relative:0.000001", 1e-3),
    ],
)
def test_steps_that_hide_the_input_from_their_derivative_are_doubted(
    release: str, noise: float, dtype: torch.dtype, kind: str
) -> None:
    found = release_evidence(kind, release, dtype)
    assert all(one.doubt(noise) for one in found)
    assert not any(one.doubt(1e3) for one in found)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("release", ["squash:0.01", "round-through:0.000001", "clip:0.5,round-through:0.001,prune:0.5"])
def test_honest_steps_are_believed(release: str, dtype: torch.dtype, kind: str) -> None:
    for noise in (0.0, 1e-4, 1e-2):
        assert not any(one.doubt(noise) for one in release_evidence(kind, release, dtype))


@pytest.mark.sampled(1)
def test_audit_has_no_number_behind_a_flat_step(kind: str) -> None:
    samples = riskaudit.Samples.from_tensors(batch_of().inputs, batch_of().targets)
    with pytest.raises(SamplesError, match="nothing read off the derivative can be believed"):
        riskaudit.audit(Net(), samples, release="round:0.000001,gaussian:0.001", prior_std=STD)
    plain, through = (
        riskaudit.audit(Net(), samples, release=f"{steps}gaussian:0.001", prior_std=STD)
        for steps in ("", "round-through:0.000001,")
    )
    for row, other in zip(plain.samples, through.samples, strict=True):
        assert row.proxies["revealed_fraction"].value == pytest.approx(other.proxies["revealed_fraction"].value)


@pytest.mark.sampled(1)
def test_a_derivative_that_tells_of_one_direction_only_is_doubted(kind: str) -> None:
    """That of the largest entry moves as far as most of what is released, which is the whole gradient."""
    checkpoint = riskaudit.load_checkpoint(DEMO / "digits-lenet.safetensors", arch="lenet")
    samples = riskaudit.load_samples(DEMO / "digits.npz", channels=1, limit=6)
    plain = riskaudit.audit(checkpoint, samples, release="gaussian:0.001")
    assert min(row.proxies["revealed_fraction"].value for row in plain.samples) > 0.1
    with pytest.raises(SamplesError, match="nothing read off the derivative can be believed"):
        riskaudit.audit(checkpoint, samples, release="round-relative:0.00001,gaussian:0.001")


def test_guard_withholds_behind_a_flat_step(kind: str) -> None:
    model, batch = Net().eval(), batch_of(1, torch.float32)
    loss = F.cross_entropy(model(batch.inputs), batch.targets)
    noise = torch.Generator().manual_seed(0)
    update = [
        (each / 1e-6).round() * 1e-6 + 1e-3 * torch.randn(each.shape, generator=noise)
        for each in torch.autograd.grad(loss, list(model.parameters()))
    ]
    guard = Guard(
        model, F.cross_entropy, Policy(max_revealed=0.9), prior_std=STD, release="round:0.000001,gaussian:0.001"
    )
    decision = guard.review((batch.inputs, batch.targets), update)
    assert decision.action == "block"
    assert any("can be believed" in reason for reason in decision.reasons), decision.reasons


def test_noise_that_covers_the_difference_settles_the_doubt() -> None:
    found = evidence_of(HIDDEN["round"](), batch_of())
    assert all(one.doubt(1e-3) for one in found)
    assert not any(one.doubt(1e3) for one in found)


@pytest.mark.parametrize(("name", "doubted"), [("detach", True), ("half detached", True), ("custom backward", True)])
def test_code_is_tried_in_double_precision(name: str, doubted: bool) -> None:
    batch = batch_of(dtype=torch.float32)
    maker = jacobian_maker(PerSampleRelease(HIDDEN[name]().eval(), F.cross_entropy), batch)
    assert (check_code(maker, batch) is not None) == doubted
    honest = jacobian_maker(PerSampleRelease(Net().eval(), F.cross_entropy), batch)
    assert check_code(honest, batch) is None


def test_quotient_of_gradients_bounds_what_may_be_claimed() -> None:
    (found,) = evidence_of(Net(), batch_of(1))
    (quotient,) = found.quotients
    assert quotient.bias < 1e-20
    assert quotient.error(1e-4) == pytest.approx(1e-4 * quotient.variance**0.5)
    exact = quotient.error(1e-4)
    assert found.doubt(1e-4, claimed_rmse=exact) is None
    assert found.doubt(1e-4, claimed_rmse=2 * exact) is not None
    assert found.doubt(1.0, claimed_rmse=STD) is None
    assert Evidence(1, (), (), (Quotient(0.0, 1.0, 0.0),)).doubt(0.1, STD) is None


def test_audit_has_no_number_where_the_derivative_is_not_believed() -> None:
    batch = batch_of()
    samples = riskaudit.Samples.from_tensors(batch.inputs, batch.targets)
    for name in ("round", "detach"):
        with pytest.raises(SamplesError, match="nothing read off the derivative can be believed"):
            riskaudit.audit(HIDDEN[name](), samples, release="gaussian:0.0001", prior_std=STD)
    result = riskaudit.audit(Net(), samples, release="gaussian:0.0001", prior_std=STD)
    assert [row.status for row in result.samples] == ["exact"] * len(batch)


def test_doubted_sample_breaks_a_policy_and_leaves_the_others_alone() -> None:
    # Dark samples are rounded, the others seen as they are.
    model = Net(lambda x: torch.where(x.mean(1, keepdim=True) < 0.01, torch.round(x * 255) / 255, x))
    inputs = batch_of().inputs
    inputs[1] *= 0.01 / inputs[1].mean() / 2
    samples = riskaudit.Samples.from_tensors(inputs, torch.arange(4))
    result = riskaudit.audit(model, samples, release="gaussian:0.00001", prior_std=STD)
    assert [row.status for row in result.samples] == ["exact", "failed", "exact", "exact"]
    assert result.samples[1].verdict == "not_assessed"
    outcome = Policy(max_revealed=1.0).decide(result)
    assert outcome.exceeded == [result.samples[1].id]


@pytest.mark.parametrize("name", ["round", "detach", "half detached", "threshold"])
@pytest.mark.parametrize("layers", ["block", "differentiate"])
def test_guard_withholds_what_it_does_not_believe(name: str, layers: Any) -> None:
    model, batch = HIDDEN[name]().eval(), batch_of(2, torch.float32)
    loss = F.cross_entropy(model(batch.inputs), batch.targets)
    noise = torch.Generator().manual_seed(0)
    update = [
        each + 1e-4 * torch.randn(each.shape, generator=noise)
        for each in torch.autograd.grad(loss, list(model.parameters()))
    ]
    guard = Guard(
        model,
        F.cross_entropy,
        Policy(max_revealed=0.5, unknown_layers=layers),
        prior_std=STD,
        release="gaussian:0.0001",
    )
    decision = guard.review((batch.inputs, batch.targets), update)
    assert decision.action == "block"
    assert decision.update is None
    if layers == "differentiate":
        assert any("can be believed" in reason for reason in decision.reasons), decision.reasons
