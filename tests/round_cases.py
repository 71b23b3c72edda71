"""Rounds of local training that the guard's tests share: 8 made-up images, mini-batches of 4, two epochs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from guard_cases import CLASSES, PRIOR_STD, images
from torch import Tensor, nn

from riskaudit.guard import Guard, Policy
from riskaudit.guard.recording import Recording

COUNT, SIZE, EPOCHS = 8, 4, 2
LENIENT = Policy(max_revealed=1.0, buffers="reset")


def network(batch_norm: bool = True, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3) if batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), norm, nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(dropout),
        nn.Linear(48, CLASSES),
    )  # fmt: skip


def sgd(model: nn.Module, **settings) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, **settings})


def guard_of(model: nn.Module, policy: Policy = LENIENT, **options) -> Guard:
    return Guard(model, "cross-entropy", policy, prior_std=PRIOR_STD, **options)


def mini_batches(seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Of every step: a shuffled loader's, another order in each epoch."""
    inputs, targets = images(COUNT)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        order = torch.randperm(COUNT, generator=generator)
        for part in order.split(SIZE):
            yield inputs[part], targets[part]


def train(recording: Recording, optimizer: torch.optim.Optimizer) -> None:
    for batch in mini_batches():
        optimizer.zero_grad()
        recording.loss(*batch).backward()
        optimizer.step()


def recorded(model: nn.Module, policy: Policy = LENIENT, make=sgd, **options) -> tuple[Guard, Recording]:
    model.train()
    guard, optimizer = guard_of(model, policy, **options), make(model)
    recording = guard.record(optimizer)
    train(recording, optimizer)
    return guard, recording
