"""One small client for the tests of the integrations: a network, a batch, and the guard's two verdicts about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riskaudit.guard import Guard, Policy

STEP_SIZE, PRIOR_STD = 0.5, 0.3
# Noise that keeps the policy, and noise that doesn't.
ENOUGH, TOO_LITTLE = 2.0, 1e-4
LIMIT = 0.2


def network(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return PRIOR_STD * torch.randn(4, 6, generator=generator), torch.tensor([0, 1, 2, 0])


def guard_of(model: nn.Module, noise_std: float, log: Path | None = None, **policy: Any) -> Guard:
    limits = Policy(max_revealed=LIMIT, **policy)
    return Guard(model, "cross-entropy", limits, prior_std=PRIOR_STD, release=f"gaussian:{noise_std}", log=log)


def gradient(model: nn.Module, noise_std: float = 0.0) -> dict[str, Tensor]:
    inputs, targets = batch()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(F.cross_entropy(model(inputs), targets), parameters)
    return {name: one + noise_std * torch.randn_like(one) for name, one in zip(names, gradients, strict=True)}


def train(model: nn.Module, noise_std: float, step_size: float = STEP_SIZE) -> None:
    """One local step of plain SGD, with noise on the gradient."""
    gradients = gradient(model, noise_std)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.sub_(gradients[name], alpha=step_size)


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
