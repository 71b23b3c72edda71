"""A small client that the guard's tests share: made-up images, a small network, and its honest updates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from riskaudit.guard import Guard, Policy
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.linalg import Spectrum
from riskaudit.release import Batch, PerSampleRelease

SIZE, CLASSES = 8, 4
PRIOR_STD = 0.3
# With six of these images and the network's first weights, this much noise reveals 5 to 30 % of an image.
NOISE = 0.02


def images(count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth pictures [count, 1, 8, 8] in [0, 1], and classes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear")
    return smooth, torch.arange(count) % CLASSES


def network(seed: int = 0) -> nn.Module:
    """A convolution and a linear layer with Tanh between them."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 16, CLASSES)
    )


def gradient(
    model: nn.Module, batch: tuple[Tensor, Tensor], noise: float = 0.0, seed: int | None = None
) -> list[Tensor]:
    """The mean gradient over the batch, with Gaussian noise: fresh, or from a seed."""
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    generator = torch.Generator()
    generator.manual_seed(generator.seed() if seed is None else seed)
    found = torch.autograd.grad(loss, [value for value in model.parameters() if value.requires_grad])
    return [each + noise * torch.randn(each.shape, generator=generator) for each in found]


def guard_of(model: nn.Module, policy: Policy, noise: float | None = NOISE, **options: Any) -> Guard:
    """A guard told of this noise."""
    release = "gradient" if noise is None else f"gaussian:{noise}"
    return Guard(
        model,
        nn.CrossEntropyLoss(),
        policy,
        **{"prior_std": PRIOR_STD, "release": release, "local_steps": 1, **options},
    )


def spectra(model: nn.Module, batch: tuple[Tensor, Tensor], release: str = "gradient") -> Tensor:
    """All eigenvalues of every sample's own H, [B, d], by automatic differentiation in float64."""
    double = PerSampleRelease(_double(model), nn.CrossEntropyLoss(), release)
    jacobian = GenericJacobian(double, Batch(batch[0].double(), batch[1]))
    return Spectrum.of(jacobian.hessian()).values.clamp_min(0.0)


def revealed(eigenvalues: Tensor, noise: float, tau: float = PRIOR_STD) -> Tensor:
    """Per sample, if the mean over all of them leaves with this noise."""
    eps = (len(eigenvalues) * noise / tau) ** 2
    return (eigenvalues / (eigenvalues + eps)).mean(-1)


def _double(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).double()
