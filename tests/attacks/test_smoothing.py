"""Kinks rounded off: what stands for a function of straight pieces, and where that leads an attack."""

from __future__ import annotations

import math
from collections.abc import Callable

import cases
import pytest
import torch
import torch.nn.functional as F
from contracts.attack import generator, observe, observe_uploads, rmse
from torch import Tensor, nn

from riskaudit.attacks import GaussNewton
from riskaudit.attacks.optimise.smoothing import rounded_off, widest_kinks
from riskaudit.release import Batch

Function = Callable[[Tensor], Tensor]
STRAIGHT: dict[str, Function] = {
    "relu": F.relu,
    "relu_": lambda x: x.clone().relu_(),
    "inplace": lambda x: F.relu(x.clone(), inplace=True),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "abs": torch.abs,
    "operator": abs,
    "hardtanh": F.hardtanh,
    "relu6": lambda x: F.relu6(4 * x) / 4,
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp_min": lambda x: torch.clamp_min(x, 0.2),
    "clamp_max": lambda x: x.clamp(max=0.2),
    "maximum": lambda x: torch.maximum(x, 0.3 * x - 0.1),
    "minimum": lambda x: torch.minimum(x, 0.3 * x - 0.1),
}
POOLS: dict[str, Function] = {
    "plain": lambda x: F.max_pool2d(x, 2),
    "padded": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "dilated": lambda x: F.max_pool2d(x, 2, stride=1, dilation=2),
    "oblong": lambda x: F.max_pool2d(x, (3, 2), stride=(1, 2)),
    "line": lambda x: F.max_pool1d(x.flatten(2), 3, padding=1),
    "module": nn.MaxPool2d(2),
}


class Applied(nn.Module):
    """A function between two layers.

    Args:
        function: of tensors.
        width: of the last layer.
    """

    def __init__(self, function: Function, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.function, self.last = nn.Linear(64, 6), function, nn.Linear(width, 10)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.function(self.first(inputs.flatten(1))))
        return outputs


def smoothed(function: Function, x: Tensor, width: float) -> Tensor:
    """E function(x + width z), z standard normal, by the trapezoidal rule."""
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return torch.trapezoid(function(x[..., None] + width * z) * density, z, dim=-1)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_pieces_become_their_mean_under_noise(name: str) -> None:
    function, width = STRAIGHT[name], 0.3
    # What scales its argument meets the width at another scale; a difference of two lines has its own slope.
    inner = {"relu6": 4.0, "maximum": 0.7, "minimum": 0.7}.get(name, 1.0)
    observation = observe(Applied(function), cases.mnist(2, 8), "gradient,gaussian:0.01")
    smooth = rounded_off(observation, inner * width)
    module = smooth.release.model
    hidden = module.get_submodule("first")(cases.mnist(2, 8).inputs.flatten(1)).detach()
    expected = module.get_submodule("last")(smoothed(function, hidden, width))
    assert torch.allclose(module(cases.mnist(2, 8).inputs), expected, atol=1e-7)
    assert not torch.allclose(observation.release.model(cases.mnist(2, 8).inputs), expected, atol=1e-3)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", [*STRAIGHT, *POOLS])
def test_narrow_kinks_are_the_network_itself(name: str) -> None:
    torch.manual_seed(1)
    if name in POOLS:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), Called(POOLS[name]), nn.Flatten(), nn.LazyLinear(10)).double()
        model(torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    else:
        model = nn.Sequential(Applied(STRAIGHT[name]))
    observation = observe(model.eval(), cases.mnist(2, 8), "gradient,gaussian:0.01")
    truth = cases.mnist(2, 8).inputs
    before, after = observation.at(truth).mean(), rounded_off(observation, 1e-7).at(truth).mean()
    assert torch.allclose(before, after, atol=1e-6)


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


@pytest.mark.parametrize("description", ["gradient,gaussian:0.01", "mean:2,gaussian:0.01"])
def test_derivatives_are_those_of_the_rounded_network(description: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 10)).double()
    batch = cases.mnist(2, 8)
    seen = observe_uploads if "mean" in description else observe
    smooth = rounded_off(seen(model.eval(), batch, description), 0.3)
    jacobian = smooth.at(batch.inputs)
    size = jacobian.shape[1]
    torch.manual_seed(0)
    direction = torch.randn(jacobian.num_samples, size, dtype=torch.float64)
    step = 1e-5
    moved = [smooth.at(batch.inputs + sign * step * direction.reshape(batch.inputs.shape)).mean() for sign in (1, -1)]
    assert torch.allclose(jacobian.matvec(direction), (moved[0] - moved[1]) / (2 * step), atol=1e-7)
    # The network's own derivative doesn't see that a unit switches.
    plain = seen(model, batch, description).at(batch.inputs)
    assert not torch.allclose(plain.matvec(direction), jacobian.matvec(direction), atol=1e-2)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", POOLS)
def test_pools_are_rounded_off(name: str) -> None:
    pool, width = POOLS[name], 0.05
    inputs = cases.mnist(2, 8).inputs + 0.1 * torch.rand(2, 1, 8, 8, generator=generator(), dtype=torch.float64)
    scale = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(scale.weight)
    model = nn.Sequential(scale, Called(pool), nn.Flatten(), nn.LazyLinear(10)).double()
    model(inputs)
    smooth = rounded_off(observe(model.eval(), Batch(inputs, torch.zeros(2).long()), "gradient,gaussian:0.01"), width)
    seen: list[Tensor] = []
    smooth.release.model.get_submodule("1").register_forward_hook(lambda *call: seen.append(call[2].detach()))
    smooth.release.model(inputs)
    above = seen[0] - pool(inputs)
    # Between the maximum itself and that of as many equal numbers as a window has entries.
    assert bool((above > 0).all())
    assert float(above.max()) <= width * math.log(9) + 1e-12


def test_smooth_networks_have_no_kinks() -> None:
    assert widest_kinks(observe(cases.lenet(8), cases.mnist(2, 8), "gradient,gaussian:0.01")) is None


def test_a_relu_network_is_inverted_where_descents_get_stuck() -> None:
    torch.manual_seed(1)
    layers = nn.Conv2d(1, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10)).double().eval()
    batch = cases.mnist(1, 8)
    observation = observe(model, batch, "gradient,gaussian:0.0003")
    alone = GaussNewton(restarts=1, smooth_steps=0).run(observation, generator())
    assert float(rmse(alone.inputs, batch.inputs).min()) > 0.02
    smoothly = GaussNewton(restarts=1).run(observation, generator())
    assert float(rmse(smoothly.inputs, batch.inputs).max()) < 0.004
    entries = observation.released.shape[1]
    assert bool((smoothly.objective < 1.1 * entries).all())
