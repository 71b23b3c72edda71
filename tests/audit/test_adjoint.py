"""Products with a derivative and with its transpose that don't fit together are never believed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import riskaudit
from riskaudit.audit.credibility import examine
from riskaudit.errors import ArchitectureError, SamplesError
from riskaudit.guard import Guard, Policy
from riskaudit.jacobian import jacobian_maker
from riskaudit.priors import IsotropicPrior
from riskaudit.release import Batch, PerSampleRelease

Map = Callable[[Tensor], Tensor]
LinearMap = Callable[[Tensor, Tensor], Tensor]


def custom(forward_map: Map, backward_map: LinearMap, jvp_map: LinearMap | None = None) -> Map:
    """A function of torch with derivatives of its own, each given the input and what it is applied to."""

    class Backward(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return forward_map(x)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return backward_map(ctx.saved_tensors[0], gradient)

    class Both(Backward):
        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            assert jvp_map is not None
            return jvp_map(ctx.saved_tensors[0], tangent)

    apply: Map = (Backward if jvp_map is None else Both).apply
    return apply


def stairs(x: Tensor) -> Tensor:
    return torch.round(8 * x) / 8


def cosine(x: Tensor, vector: Tensor) -> Tensor:
    return vector * torch.cos(x)


def through(x: Tensor, vector: Tensor) -> Tensor:
    return vector.clone()


UNFIT: dict[str, Callable[[], Map]] = {
    "smaller backward": lambda: custom(torch.sin, lambda x, g: 0.1 * cosine(x, g), cosine),
    "no backward": lambda: custom(torch.sin, lambda x, g: 0 * g, cosine),
    "no jvp": lambda: custom(torch.sin, cosine, lambda x, t: 0 * t),
    "straight-through without jvp": lambda: custom(stairs, through, lambda x, t: 0 * t),
    "backward that isn't linear": lambda: custom(torch.sin, lambda x, g: cosine(x, g.abs())),
    "clamped backward": lambda: custom(torch.sin, lambda x, g: cosine(x, g.clamp(-0.01, 0.01))),
}
FIT: dict[str, Callable[[], Map]] = {
    "both": lambda: custom(torch.sin, cosine, cosine),
    "backward only": lambda: custom(torch.sin, cosine),
    "straight-through": lambda: custom(stairs, through, through),
}


class Net(nn.Module):
    """A function before the first layer, or between the two."""

    def __init__(self, function: Map, in_front: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 3)
        self.function, self.in_front = function, in_front

    def forward(self, x: Tensor) -> Tensor:
        if self.in_front:
            return self.last(torch.tanh(self.first(self.function(x))))
        return self.last(self.function(self.first(x)))


class Fourier(nn.Module):
    """Complex numbers inside, between real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 12, bias=False), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.first(x)) * torch.fft.rfft(x)
        return self.last(torch.cat([spectrum.abs(), spectrum.real], 1))


def samples(dtype: torch.dtype = torch.float32, *shape: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.rand(4, *(shape or (12,)), generator=generator).to(dtype), torch.arange(4) % 3)


def fits(model: nn.Module, batch: Batch, release: str = "gradient") -> list[bool]:
    maker = jacobian_maker(PerSampleRelease(model.to(batch.inputs.dtype).eval(), F.cross_entropy, release), batch)
    flat = batch.inputs.flatten(1)
    drawn = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [one.adjoint for one in examine(maker, batch, IsotropicPrior(0.5, 0.3).bind(batch.targets, flat), drawn)]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("in_front", [True, False])
@pytest.mark.parametrize("name", UNFIT)
def test_audit_refuses_what_does_not_fit(name: str, in_front: bool, dtype: str) -> None:
    batch = samples()
    data = riskaudit.Samples.from_tensors(batch.inputs, batch.targets)
    with pytest.raises((SamplesError, ArchitectureError), match="can be believed"):
        riskaudit.audit(Net(UNFIT[name](), in_front), data, release="gaussian:0.01", prior_std=0.3, dtype=dtype)


@pytest.mark.parametrize("name", ["smaller backward", "straight-through without jvp", "clamped backward"])
def test_products_are_told_apart_themselves(name: str) -> None:
    assert fits(Net(UNFIT[name](), False), samples()) == [False] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("in_front", [True, False])
@pytest.mark.parametrize("name", FIT)
def test_own_functions_that_fit(name: str, in_front: bool, dtype: torch.dtype) -> None:
    assert fits(Net(FIT[name](), in_front), samples(dtype)) == [True] * 4


@pytest.mark.parametrize("release", ["gradient", "clip:0.1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_complex_numbers(dtype: torch.dtype, release: str) -> None:
    torch.manual_seed(0)
    assert fits(Fourier(), samples(dtype), release) == [True] * 4


def test_guard_withholds() -> None:
    model, batch = Net(UNFIT["smaller backward"](), False).eval(), samples()
    loss = F.cross_entropy(model(batch.inputs), batch.targets)
    update = [each + torch.randn_like(each) for each in torch.autograd.grad(loss, list(model.parameters()))]
    policy = Policy(max_revealed=1.0, unknown_layers="differentiate")
    decision = Guard(model, F.cross_entropy, policy, prior_std=0.3, release="gaussian:1").review(
        (batch.inputs, batch.targets), update
    )
    assert decision.action == "block"
    assert any("don't fit together" in reason for reason in decision.reasons), decision.reasons


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "convolution": lambda: nn.Conv2d(2, 2, 3, padding=1),
    "grouped": lambda: nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False),
    "max-pool": lambda: nn.MaxPool2d(3, stride=1, padding=1),
    "average": lambda: nn.AvgPool2d(3, stride=1, padding=1),
    "batch norm": lambda: nn.BatchNorm2d(2),
    "group norm": lambda: nn.GroupNorm(1, 2),
    "layer norm": lambda: nn.LayerNorm([2, 6, 6]),
    "linear": lambda: nn.Linear(6, 6),
    "dropout": nn.Dropout,
}


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5),
    double=st.booleans(),
    release=st.sampled_from(["gradient", "clip:0.1", "prune:0.5"]),
    gain=st.floats(0.1, 5.0),
    seed=st.integers(0, 2**20),
)
def test_any_layers_fit(names: list[str], double: bool, release: str, gain: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(*(LAYERS[name]() for name in names), nn.Flatten(), nn.Linear(72, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(gain)
    batch = samples(torch.float64 if double else torch.float32, 2, 6, 6)
    assert fits(model, batch, release) == [True] * 4
