"""The network that server and clients train."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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


class Network(nn.Module):
    """A small residual classifier of 8 x 8 digits."""

    def __init__(self) -> None:
        super().__init__()
        first = [nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        self.layers = nn.Sequential(*first, Block(8), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 10] of images [B, 1, 8, 8]."""
        return self.layers(images)
