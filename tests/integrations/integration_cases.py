"""A small model and batch that the guard decides about in milliseconds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riskaudit.guard import Guard, Policy

PRIOR_STD, STD = 0.3, 0.5
# Everything passes, and nothing does.
LENIENT, STRICT = Policy(max_revealed=0.99), Policy(max_revealed=1e-6)


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


def small_batch(count: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 16, generator=generator), torch.arange(count) % 3


def small_guard(model: nn.Module, policy: Policy = LENIENT, **options) -> Guard:
    return Guard(model, "cross-entropy", policy, prior_std=PRIOR_STD, release=f"gaussian:{STD}", **options)


def backward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    F.cross_entropy(model(batch[0]), batch[1]).backward()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for value in model.parameters()]).clone()


def gradient(model: nn.Module) -> Tensor | None:
    """All gradients as one vector; None where there are none."""
    held = [value.grad for value in model.parameters()]
    if all(one is None for one in held):
        return None
    return torch.cat([one.reshape(-1) for one in held]).clone()
