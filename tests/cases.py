"""Real images, small models, plans and linearisations that the numerical tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from riskaudit.inputs.architectures.registry import ARCHITECTURES
from riskaudit.jacobian import jacobian_maker
from riskaudit.priors import IsotropicPrior, Prior
from riskaudit.proxies import PROXIES
from riskaudit.release import Batch, PerSampleRelease
from riskaudit.sensitivity import Linearisation, Plan

IMAGES = Path(__file__).parent / "data"
# Thousands of images, for tests marked slow.
LARGE_SETS = Path(os.environ.get("RISKAUDIT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
PRIOR = IsotropicPrior(0.5, 0.3)


@lru_cache
def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as content:
        return content["images"], content["labels"]


def image_batch(path: Path, count: int, size: int) -> Batch:
    """The middle ``size`` x ``size`` pixels of a file's first images, [B, C, size, size], float64 in [0, 1]."""
    images, labels = _arrays(path)
    if count > len(images):
        raise ValueError(f"{path.name} holds {len(images)} images, not {count}")
    edge = (images.shape[-1] - size) // 2
    pixels = torch.from_numpy(images[:count, ..., edge : edge + size, edge : edge + size].copy()).double() / 255
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels
    return Batch(pixels, torch.from_numpy(labels[:count].astype(np.int64)))


def mnist(count: int, size: int = 28) -> Batch:
    """Of the 32 MNIST test images beside these tests."""
    return image_batch(IMAGES / "mnist_test.npz", count, size)


def cifar(count: int, size: int = 32) -> Batch:
    """Of the 16 CIFAR-10 test images beside these tests."""
    return image_batch(IMAGES / "cifar10_test.npz", count, size)


def large_set(name: str) -> Path:
    """The file of hundreds of MNIST or CIFAR-10 images, or a skip with the reason: for tests marked slow."""
    path = LARGE_SETS / name
    if not path.is_file():
        pytest.skip(f"real images are not here: {path} (RISKAUDIT_DATA names their folder)")
    return path


@lru_cache
def digits(count: int) -> Batch:
    """The first of scikit-learn's 1797 digits, [B, 1, 8, 8], float64 in [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images[:count].reshape(-1, 1, 8, 8)) / 16
    return Batch(pixels, torch.from_numpy(labels[:count].astype(np.int64)))


@lru_cache
def colour_squares(count: int) -> Batch:
    """Squares of the CIFAR-10 images, a square of each image in turn, [B, 3, 4, 4]; the targets are theirs."""
    images, targets = cifar(16).inputs, cifar(16).targets
    squares = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(2, 3, 0, 1, 4, 5).reshape(-1, 3, 4, 4)
    return Batch(squares[:count], targets.repeat(64)[:count])


class SmallResidual(nn.Module):
    """A stem and one residual block with batch norm; x [B, C, H, W] to logits [B, classes]."""

    def __init__(self, channels: int = 1, width: int = 6, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.tanh(self.norm1(self.stem(x)))
        block = F.softplus(self.norm2(self.conv(stem)) + stem)
        return self.fc(F.adaptive_avg_pool2d(block, 2).flatten(1))


class TiedWeights(nn.Module):
    """One matrix used twice: its gradient is a sum over both places."""

    def __init__(self, features: int = 36, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Linear(features, features)
        self.second = nn.Linear(features, features, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.sigmoid(self.first(x.flatten(1))))))


class SineWithoutForward(torch.autograd.Function):
    """sin, differentiable twice in reverse mode only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> Tensor:
        return cotangent * ctx.saved_tensors[0].cos()


class SineNet(nn.Module):
    def __init__(self, features: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(features, 20), nn.Linear(20, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(SineWithoutForward.apply(self.first(x.flatten(1))))


def uniform_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter uniform(-0.5, 0.5), in order, as in the papers' experiments; float64, eval mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    return model.double().eval()


def lenet(size: int = 28) -> nn.Module:
    features = 12 * (-(-size // 4)) ** 2
    return uniform_(ARCHITECTURES["lenet"].build(channels=1, features=features, classes=10))


def mlp(widths: Sequence[int] = (144, 24, 10)) -> nn.Module:
    torch.manual_seed(1)
    return ARCHITECTURES["mlp"].build(widths=tuple(widths)).double().eval()


def convbig(size: int = 8) -> nn.Module:
    torch.manual_seed(2)
    features = 64 * (size // 4 + 1) ** 2
    build = ARCHITECTURES["convbig"].build
    return build(channels=3, features=features, classes=10, hidden=40, second=20).double().eval()


def residual(channels: int = 1) -> nn.Module:
    """Eval-mode batch norm whose running statistics matter."""
    torch.manual_seed(3)
    model = SmallResidual(channels).double().eval()
    for layer in (model.norm1, model.norm2):
        layer.running_mean.uniform_(-0.3, 0.3)
        layer.running_var.uniform_(0.3, 2.0)
        with torch.no_grad():
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.uniform_(-0.2, 0.2)
    return model


def tied() -> nn.Module:
    torch.manual_seed(4)
    return TiedWeights().double().eval()


def sine_net(features: int = 16) -> nn.Module:
    torch.manual_seed(5)
    return SineNet(features).double().eval()


def plan(
    solver: str = "dense",
    inverse: str = "dense",
    *,
    tolerance: float = 1e-6,
    max_matvecs: int = 1000,
    precision: float | None = None,
    max_probes: int = 8,
    failure: float = 1e-4,
    width: int = 8,
) -> Plan:
    return Plan(
        solver=solver,
        solver_reason="named by the test",
        inverse=inverse,
        inverse_reason="named by the test",
        tolerance=tolerance,
        max_matvecs=max_matvecs,
        precision=precision,
        max_probes=max_probes,
        failure=failure,
        width=width,
        proxies=frozenset(PROXIES),
    )


def linearise(
    model: nn.Module,
    batch: Batch,
    release: str = "gradient,gaussian:0.01",
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    prior: Prior = PRIOR,
    how: Plan | None = None,
    seed: int = 0,
    indices: list[int] | None = None,
) -> Linearisation:
    """A linearisation by the package, dense unless ``how`` says otherwise."""
    numbers = list(range(len(batch))) if indices is None else indices
    jacobian = jacobian_maker(PerSampleRelease(model, loss, release), batch)(batch)
    return Linearisation(jacobian, numbers, prior, how or plan(), seed)
