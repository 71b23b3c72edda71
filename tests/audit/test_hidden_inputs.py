"""Inputs that stand in the gradient behind thresholds and saturated or detached steps, whole or in part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from riskaudit import Samples, audit
from riskaudit.audit.credibility import examine
from riskaudit.audit.evidence import Difference, Evidence, Hidden
from riskaudit.guard import Guard, Policy
from riskaudit.jacobian import jacobian_maker
from riskaudit.priors import IsotropicPrior
from riskaudit.release import Batch, PerSampleRelease

SIDE, CLASSES = 8, 3
# Root mean square of hidden units' derivatives below which the units count as saturated; 1 at their steepest.
SATURATED = 0.1


class Fronted(nn.Module):
    """A network behind a step of its own."""

    def __init__(self, before: Callable[[Tensor], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.before, self.network = before, network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.before(x))


def convolutional(*, bias: bool, norm: bool = False) -> nn.Module:
    middle = [nn.BatchNorm2d(8)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=bias, padding=1), *middle, nn.SiLU(), nn.Flatten(), nn.Linear(8 * SIDE**2, CLASSES)
    )


def connected(*, bias: bool, norm: bool = False) -> nn.Module:
    front = [nn.LayerNorm(SIDE**2)] if norm else []
    return nn.Sequential(nn.Flatten(), *front, nn.Linear(SIDE**2, 16, bias=bias), nn.Tanh(), nn.Linear(16, CLASSES))


class Lookup(nn.Module):
    """Grey levels as rows of a table that nobody trains."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(2, 4))
        self.last = nn.Linear(4 * SIDE**2, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        table: Any = self.table
        return self.last(table[(x.flatten(1) > 0.5).long()].flatten(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "connected": lambda: connected(bias=True),
    "no bias": lambda: connected(bias=False),
    "layer norm": lambda: connected(bias=True, norm=True),
    "convolution": lambda: convolutional(bias=True),
    "convolution without bias": lambda: convolutional(bias=False),
    "batch norm": lambda: convolutional(bias=False, norm=True),
}
STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "threshold": lambda x: (x > 0.5).to(x.dtype),
    "steep": lambda x: torch.sigmoid(60 * (x - 0.5)),
    "steeper": lambda x: torch.sigmoid(100 * (x - 0.5)),
    "tanh": lambda x: torch.tanh(20 * (x - 0.5)),
    "clamp": lambda x: ((x - 0.3) / 0.4).clamp(0, 1),
    "hard sigmoid": lambda x: F.hardsigmoid(12 * (x - 0.5)),
}
# In part: the others of the input's entries are in full view of the derivative.
PART = (torch.arange(SIDE**2) % 10 < 7).reshape(1, SIDE, SIDE)
HIDDEN_IN_PART: dict[str, Callable[[Tensor], Tensor]] = {
    "threshold": lambda x: torch.where(PART, (x > 0.5).to(x.dtype), x),
    "steep": lambda x: torch.where(PART, torch.sigmoid(60 * (x - 0.5)), x),
    "detach": lambda x: torch.where(PART, x.detach(), x),
    "loud": lambda x: torch.where(PART, x.detach(), 20 * x),
}


def two_valued(count: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = (torch.rand(count, 1, SIDE, SIDE, generator=generator) > 0.5).to(dtype)
    return Batch(inputs, torch.arange(count) % CLASSES)


def evidence_of(model: nn.Module, batch: Batch, std: float = 0.5, release: str = "gradient") -> list[Evidence]:
    maker = jacobian_maker(PerSampleRelease(model.to(batch.inputs.dtype).eval(), F.cross_entropy, release), batch)
    flat = batch.inputs.flatten(1)
    drawn = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return examine(maker, batch, IsotropicPrior(0.5, std).bind(batch.targets, flat), drawn)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("step", STEPS)
def test_two_valued_inputs_behind_thresholds(step: str, network: str) -> None:
    torch.manual_seed(0)
    found = evidence_of(Fronted(STEPS[step], NETWORKS[network]()), two_valued())
    assert all(one.doubt(1e-3, claimed_fraction=0.05) for one in found)


def test_looked_up_inputs() -> None:
    torch.manual_seed(0)
    assert all(one.doubt(1e-3) for one in evidence_of(Lookup(), two_valued()))


@pytest.mark.sampled(16)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("step", HIDDEN_IN_PART)
@pytest.mark.parametrize("release", ["gradient", "clip:0.1"])
def test_partly_hidden_inputs(step: str, network: str, release: str) -> None:
    torch.manual_seed(0)
    found = evidence_of(Fronted(HIDDEN_IN_PART[step], NETWORKS[network]()), two_valued(), release=release)
    assert all(one.doubt(1e-5, claimed_fraction=0.1) for one in found)
    # Where the derivative tells as much, nothing is hidden by it.
    assert not any(one.doubt(1e-5, claimed_fraction=1.0) for one in found)


def test_partly_hidden_inputs_of_any_sample_in_single_precision() -> None:
    torch.manual_seed(0)
    batch = two_valued(8)
    marked = Batch(batch.inputs.clone(), batch.targets)
    marked.inputs[6] *= 0.9

    def step(x: Tensor) -> Tensor:
        bright = x.amax((1, 2, 3), keepdim=True) > 0.95
        return torch.where(bright, x, torch.where(PART, x.detach(), x))

    found = evidence_of(Fronted(step, connected(bias=False)), marked)
    assert [one.doubt(1e-5, claimed_fraction=0.1) is not None for one in found] == [place == 6 for place in range(8)]


class HidesBehindALayer(nn.Module):
    """Dark samples have half of a hidden layer detached, which no visible step shows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(SIDE**2, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        hidden = torch.tanh(self.first(x))
        dark = (x.amax(1, keepdim=True) < 0.95) & (torch.arange(16) % 2 > 0)
        return self.last(torch.tanh(self.middle(torch.where(dark, hidden.detach(), hidden))))


def with_one_dark(place: int) -> Batch:
    batch = two_valued(6)
    batch.inputs[place] *= 0.9
    return batch


@pytest.mark.parametrize("place", [0, 5])
def test_scan_in_single_precision_tries_every_sample(place: int) -> None:
    batch = with_one_dark(place)
    # What is tried before the work begins are the first four.
    order = [1, 2, 3, 4, 0, 5]
    samples = Samples.from_tensors(batch.inputs[order], batch.targets[order])
    result = audit(HidesBehindALayer(), samples, release="gaussian:0.0001", prior_std=0.3, dtype="float32")
    assert [row.status == "failed" for row in result.samples] == [chosen == place for chosen in order]


def test_guard_tries_a_sample_that_nobody_can_foresee(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HidesBehindALayer().eval()
    policy = Policy(max_revealed=1.0, max_gradients=None)
    guard = Guard(model, F.cross_entropy, policy, prior_std=0.5, release="gaussian:0.0001", local_steps=1)

    def review(batch: Batch) -> tuple[str, list[str]]:
        gradients = torch.autograd.grad(F.cross_entropy(model(batch.inputs), batch.targets), list(model.parameters()))
        update = [each + 1e-4 * torch.randn(each.shape) for each in gradients]
        decision = guard.review((batch.inputs, batch.targets), update)
        return decision.action, decision.reasons

    assert review(two_valued(6))[0] == "allow"
    # The batch is one that is looked into, and its last sample the one that is drawn.
    monkeypatch.setattr("riskaudit.guard.evidence.secrets.randbelow", lambda count: 0 if count == 8 else count - 1)
    action, reasons = review(with_one_dark(5))
    assert action == "block"
    assert any("can be believed" in reason for reason in reasons), reasons


@pytest.mark.parametrize(("bad", "doubted"), [(1, False), (2, False), (3, True)])
def test_jump_at_a_kink_does_not_show_at_every_try(bad: int, doubted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def differences(maker: Any, batch: Batch, direction: Tensor, apart: bool) -> list[Difference]:
        tries.append(len(batch))
        return [Difference(1e-7, 1.0 if len(tries) <= bad and place == 0 else 0.0, 1e-3) for place in range(len(batch))]

    monkeypatch.setattr("riskaudit.audit.credibility._tiny_from", differences)
    torch.manual_seed(0)
    found = evidence_of(connected(bias=True), two_valued(3, torch.float64))
    assert [one.doubt(1e-5) is not None for one in found] == [doubted, False, False]
    assert tries == [3] + [1] * min(bad, 2)


def test_hidden_fraction_is_that_of_the_noise() -> None:
    hidden = Hidden(np.array([0.0, 1.0, 1.0, 1.0]), 0.5)
    assert hidden.fraction(1.0) == pytest.approx(0.5 * 3 / 8)
    assert hidden.fraction(0.0) == pytest.approx(0.5 * 3 / 4)
    evidence = Evidence(4, (), (), hidden=(hidden,))
    assert evidence.doubt(1.0, claimed_fraction=0.1) is not None
    assert evidence.doubt(1.0, claimed_fraction=0.2) is None
    assert evidence.doubt(100.0, claimed_fraction=0.0) is None


@settings(max_examples=25, deadline=None)
@given(
    network=st.sampled_from(sorted(NETWORKS)),
    threshold=st.floats(0.2, 0.8),
    steepness=st.floats(40, 1e4),
    gain=st.floats(0.1, 10),
    low=st.floats(-1, 1),
    seed=st.integers(0, 2**20),
)
def test_any_threshold(network: str, threshold: float, steepness: float, gain: float, low: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = Fronted(lambda x: low + gain * torch.sigmoid(steepness * (x - threshold)), NETWORKS[network]())
    found = evidence_of(model, two_valued(2, seed=seed))
    assert all(one.doubt(1e-5, claimed_fraction=0.05) for one in found)


def slopes(model: nn.Module, inputs: Tensor) -> list[float]:
    """Root mean square, over a sample's hidden units, of the derivative of their activation."""
    entered: list[Tensor] = []
    (activation,) = (layer for layer in model.modules() if isinstance(layer, nn.Tanh | nn.SiLU))
    with activation.register_forward_hook(lambda _, arguments, __: entered.append(arguments[0].detach())):
        model(inputs)
    values = entered[0].requires_grad_()
    (slope,) = torch.autograd.grad(activation(values).sum(), values)
    return slope.flatten(1).square().mean(1).sqrt().tolist()


@settings(max_examples=25, deadline=None)
@example(network="connected", shift=-2.0, gain=10.0, clamped=False, double=False, seed=21154)
@given(
    network=st.sampled_from(sorted(NETWORKS)),
    shift=st.floats(-2, 2),
    gain=st.floats(0.1, 10),
    clamped=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_affine_steps_hide_nothing(
    network: str, shift: float, gain: float, clamped: bool, double: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    model = Fronted(lambda x: gain * ((x.clamp(0, 1) if clamped else x) - shift), NETWORKS[network]())
    batch = two_valued(2, torch.float64 if double else torch.float32, seed=seed)
    found = evidence_of(model, batch)
    # A normalisation bends, and at so little noise everything is revealed.
    claimed = 0.5 if network == "layer norm" else 0.0
    for one, slope in zip(found, slopes(model, batch.inputs), strict=True):
        doubts = {one.doubt(noise, claimed_fraction=claimed) for noise in (0.0, 1e-3)} - {None}
        # Where all hidden units are saturated, a step makes some of them change sides, which the release shows and the
        # derivative doesn't tell of, in either precision.
        assert not doubts or (slope < SATURATED and all("a saturated" in doubt for doubt in doubts))


@pytest.mark.parametrize("step", ["threshold", "steep", "clamp"])
@pytest.mark.parametrize("network", ["no bias", "convolution without bias"])
def test_guard_withholds_what_stands_behind_thresholds(network: str, step: str) -> None:
    torch.manual_seed(0)
    model, batch = Fronted(STEPS[step], NETWORKS[network]()).eval(), two_valued(1)
    loss = F.cross_entropy(model(batch.inputs), batch.targets)
    noise = torch.Generator().manual_seed(0)
    update = [
        each + 1e-3 * torch.randn(each.shape, generator=noise)
        for each in torch.autograd.grad(loss, list(model.parameters()))
    ]
    guard = Guard(model, F.cross_entropy, Policy(max_revealed=0.1), prior_std=0.5, release="gaussian:0.001")
    decision = guard.review((batch.inputs, batch.targets), update)
    assert decision.action == "block"
    assert any("can be believed" in reason for reason in decision.reasons), decision.reasons
