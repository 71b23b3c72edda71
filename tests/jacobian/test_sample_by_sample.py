"""Code that no torch.func transform can run, against the dense oracle in float64; and what can't be differentiated."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from riskaudit.errors import ArchitectureError
from riskaudit.jacobian import JacobianMaker, jacobian_maker
from riskaudit.release import Batch, PerSampleRelease


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s + x * s * (1 - s))


class Rounded(torch.autograd.Function):
    """Straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 16).round() / 16

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def masked(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[x > 0] = torch.tanh(x[x > 0])
    return out


FUNCTIONS = {
    "custom function": Swish.apply,
    "straight-through": Rounded.apply,
    "branch": lambda h: torch.tanh(h) if h.sum() > 0 else torch.sigmoid(h),
    "item": lambda h: torch.tanh(h) / max(h.abs().max().item(), 1e-3),
    "loop": lambda h: sum(torch.sin((k + 1) * h) for k in range(1 + int(h.abs().sum() > 1))),
    "checkpoint": lambda h: checkpoint(torch.tanh, h, use_reentrant=False),
    "boolean mask": masked,
}


class Net(nn.Module):
    def __init__(self, function: Any, hidden: int = 5) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, hidden), nn.Linear(hidden, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], layers: int = 1) -> None:
        super().__init__()
        self.cell = kind(2, 4, layers, batch_first=True, bidirectional=layers > 1)
        self.last = nn.Linear(4 * (2 if layers > 1 else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cell(x.reshape(len(x), 3, 2))[0][:, -1])


def batch_of(count: int = 3, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(count, 6, generator=generator, dtype=torch.float64), torch.arange(count) % 3)


def check(model: nn.Module, batch: Batch, clipped: bool = False) -> JacobianMaker:
    """J, J^T, J^T J, r and the losses are those of the oracle."""
    model = model.double().eval()
    release = PerSampleRelease(model, F.cross_entropy, "clip:0.3" if clipped else "gradient")
    changes = (oracles.clipped(0.3),) if clipped else ()
    maker = jacobian_maker(release, batch)
    jacobian = maker(batch)
    d, P = jacobian.shape[1], jacobian.shape[0]
    wide = jacobian.matmat(torch.eye(d, dtype=torch.float64).expand(len(batch), -1, -1)).detach()
    tall = jacobian.rmatmat(torch.eye(P, dtype=torch.float64).expand(len(batch), -1, -1)).detach()
    square = jacobian.hessian().matmat(torch.eye(d, dtype=torch.float64).expand(len(batch), -1, -1)).detach()
    for place, (x, target) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
        expected = torch.from_numpy(oracles.jacobian(model, F.cross_entropy, x, target, changes))
        torch.testing.assert_close(wide[place], expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(tall[place], expected.mT, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(square[place], expected.mT @ expected, rtol=1e-8, atol=1e-10)
        mean = oracles.released_mean(model, F.cross_entropy, x, target, changes).detach()
        torch.testing.assert_close(jacobian.mean()[place].detach(), mean)
        torch.testing.assert_close(release.mean(batch)[place].detach(), mean)
        loss = F.cross_entropy(model(x[None]), target[None]).detach()
        torch.testing.assert_close(jacobian.losses()[place].detach(), loss)
        torch.testing.assert_close(release.losses(batch)[place].detach(), loss)
    return maker


@pytest.mark.sampled(5)
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_code_that_no_transform_runs(name: str, clipped: bool) -> None:
    torch.manual_seed(0)
    # Layers can be told where every sample is run by itself, whatever it decides from its values.
    expected = "structured" if name in ("boolean mask", "branch", "loop") else "sample_by_sample"
    assert check(Net(FUNCTIONS[name]), batch_of(), clipped).kind == expected


@pytest.mark.sampled(1)
@pytest.mark.parametrize("layers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind: type[nn.Module], layers: int) -> None:
    torch.manual_seed(0)
    assert check(Recurrent(kind, layers), batch_of(), clipped=True).kind == "sample_by_sample"


def test_recurrent_layers_in_single_precision_avoid_fused_kernels() -> None:
    torch.manual_seed(0)
    model, batch = Recurrent(nn.LSTM).eval(), batch_of()
    single = Batch(batch.inputs.float(), batch.targets)
    jacobian = jacobian_maker(PerSampleRelease(model, F.cross_entropy), single)(single)
    found = jacobian.matmat(torch.eye(6).expand(3, -1, -1))
    expected = oracles.jacobian(model.double(), F.cross_entropy, batch.inputs[0], batch.targets[0])
    torch.testing.assert_close(found[0].double(), torch.from_numpy(expected), rtol=1e-3, atol=1e-5)


def test_loss_with_a_boolean_mask() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        known = target >= 0
        return F.binary_cross_entropy_with_logits(output[known], target[known])

    torch.manual_seed(0)
    model = Net(torch.tanh).double().eval()
    batch = Batch(batch_of().inputs, torch.tensor([[1.0, -1, 0], [0, 1, -1], [1, 1, 1]], dtype=torch.float64))
    jacobian = jacobian_maker(PerSampleRelease(model, loss), batch)(batch)
    found = jacobian.matmat(torch.eye(6, dtype=torch.float64).expand(3, -1, -1)).detach()
    for place in range(3):
        expected = oracles.jacobian(model, loss, batch.inputs[place], batch.targets[place])
        torch.testing.assert_close(found[place], torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda h: checkpoint(torch.tanh, h, use_reentrant=True), "use_reentrant=False"),
        (Once.apply, "once_differentiable"),
        (lambda h: F.dropout(h, 0.5, training=True), "random numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_what_has_no_second_derivative_is_named_with_advice(function: Any, words: str) -> None:
    release = PerSampleRelease(Net(function).double().eval(), F.cross_entropy)
    with pytest.raises(ArchitectureError, match=words):
        jacobian_maker(release, batch_of())


ACTIVATIONS = [torch.tanh, torch.sigmoid, torch.relu, F.softplus, F.gelu, Swish.apply, masked]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    pair=st.tuples(st.sampled_from(ACTIVATIONS), st.sampled_from(ACTIVATIONS)), threshold=st.floats(-1, 1),
    hidden=st.integers(1, 6), seed=st.integers(0, 999), read=st.sampled_from(["sum", "max", "item"]),
)  # fmt: skip
def test_random_branches_on_data(pair: Any, threshold: float, hidden: int, seed: int, read: str) -> None:
    def function(h: Tensor) -> Tensor:
        value = {"sum": h.sum, "max": h.max, "item": lambda: h.mean().item()}[read]()
        return pair[0](h) if value > threshold else pair[1](h)

    torch.manual_seed(seed)
    assert check(Net(function, hidden), batch_of(2, seed)).kind != "generic"
