"""A small network and samples for studies."""

from __future__ import annotations

import torch
from scan_cases import DATA
from torch import nn

from riskaudit.inputs import Samples, load_samples
from riskaudit.inputs.architectures.convolutional import LeNet

NOISE = 0.003


def network(seed: int = 0) -> nn.Module:
    """An untrained lenet for the demo's 8 x 8 digits."""
    generator = torch.Generator().manual_seed(seed)
    model = LeNet(channels=1, features=48, classes=10)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    return model.eval()


def digits(count: int, first: int = 0) -> Samples:
    return load_samples(DATA, channels=1, limit=first + count).select(list(range(first, first + count)))


def perceptron(seed: int = 0) -> nn.Module:
    """Two layers for the demo's digits, sigmoid between."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Sigmoid(), nn.Linear(4, 10)).eval()
