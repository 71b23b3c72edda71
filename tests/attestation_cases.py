"""Uploads of a small network for tests of attestations: clipped, with noise or without."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from riskaudit.release import Noise

SHAPES = {"1.weight": (40, 64), "1.bias": (40,), "3.weight": (4, 40), "3.bias": (4,)}
CLIP, STD = 1.0, 0.05
DECLARED = f"clip:{CLIP},gaussian:{STD}"


def network(seed: int = 0) -> nn.Module:
    """Two linear layers with a ReLU between them, whose parameters are `SHAPES`."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 4))


def clean_update(seed: int = 0, clip: float = CLIP) -> dict[str, Tensor]:
    """The gradient of a mean over 6 samples, scaled to the clip norm."""
    model = network(seed)
    inputs = torch.rand(6, 64, generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(model(inputs), torch.arange(6) % 4).backward()
    gradient = {name: value.grad for name, value in model.named_parameters()}
    norm = torch.cat([value.flatten() for value in gradient.values()]).norm()
    return {name: clip * value / norm for name, value in gradient.items()}


def noisy(clean: Mapping[str, Tensor], noise: Noise | None = None, scale: float = 1.0, seed: int = 0):
    """The same with ``scale`` times noise of a law, by default Gaussian of std `STD`."""
    law, generator = noise or Noise("gaussian", STD), torch.Generator().manual_seed(seed)
    return {
        name: value + scale * law.sample(value.numel(), generator, torch.float64).reshape(value.shape).float()
        for name, value in clean.items()
    }


def statuses(result) -> dict[str, str]:
    """Of every test of an attestation."""
    return {test.id: test.status for test in result.tests}
