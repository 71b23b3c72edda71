"""The network, the digits of each client, and its round of local training."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import riskaudit
from riskaudit.guard import Recording

SAMPLES, BATCH_SIZE, MOMENTUM = 16, 8, 0.9


class Block(nn.Module):
    """Two convolutions with batch norm, beside a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        more = [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), *more)

    def forward(self, values: Tensor) -> Tensor:
        """Values [B, channels, h, w] in the same shape."""
        return F.relu(values + self.layers(values))


def network() -> nn.Module:
    """A small residual network for 8 x 8 digits, the same on every call."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*first, Block(8), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 10))
    torch.set_rng_state(state)
    return model


def digits_of(partition: int, num_partitions: int) -> tuple[Tensor, Tensor]:
    """The digits that one client holds."""
    digits = riskaudit.load_samples(Path(str(files("riskaudit") / "demo" / "digits.npz")), channels=1)
    mine = digits.select(list(range(partition, len(digits), num_partitions))[:SAMPLES])
    return mine.inputs.float(), mine.targets


def train_round(
    recording: Recording, optimizer: torch.optim.Optimizer, digits: tuple[Tensor, Tensor], epochs: int
) -> float:
    """Epochs of mini-batches, of which the recording computes the loss; returns the last one."""
    value = 0.0
    for _ in range(epochs):
        for inputs, targets in zip(*(part.split(BATCH_SIZE) for part in digits), strict=True):
            optimizer.zero_grad()
            loss = recording.loss(inputs, targets)
            loss.backward()
            optimizer.step()
            value = loss.item()
    return value
