"""The network, the digits of each client, and its one local step."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import riskaudit
from riskaudit.guard import SecureNoise

BATCH_SIZE = 8


def network() -> nn.Module:
    """A small classifier of 8 x 8 digits, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator).sub(0.5).mul(0.25))
    return model


def batch_of(partition: int, num_partitions: int) -> tuple[Tensor, Tensor]:
    """The digits that one client holds."""
    digits = riskaudit.load_samples(Path(str(files("riskaudit") / "demo" / "digits.npz")), channels=1)
    mine = digits.select(list(range(partition, len(digits), num_partitions))[:BATCH_SIZE])
    return mine.inputs.float(), mine.targets


def local_step(model: nn.Module, batch: tuple[Tensor, Tensor], step_size: float, noise_std: float) -> float:
    """One step of plain SGD with noise on the gradient; returns the loss."""
    inputs, targets = batch
    loss = F.cross_entropy(model(inputs), targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    noise = SecureNoise("gaussian", noise_std)
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.sub_(noise.added(gradient), alpha=step_size)
    return loss.item()
