"""What a review costs on this machine: to choose a budget before the first round."""

from __future__ import annotations

import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from riskaudit.errors import RiskauditError, SettingsError
from riskaudit.formatting import count
from riskaudit.guard.decision import Decision
from riskaudit.guard.guard import Guard
from riskaudit.guard.noise.randomness import SecureNoise
from riskaudit.guard.updates import split
from riskaudit.inputs import Samples
from riskaudit.release.shares import batch_loss
from riskaudit.release.training import LocalTraining

# The budget that is recommended leaves so much room above the slowest review seen.
ROOM = 1.5


@dataclass(frozen=True)
class ReviewCost:
    """Medians over a few batches of the user's data.

    Attributes:
        batch_size: samples per review.
        review_seconds: of one review.
        slowest_seconds: of the slowest after the first.
        setup_seconds: of `Guard.prepare`, which looks at the model's layers and code once in a process.
        first_seconds: of the first review after it.
        unit: what a review is compared with: the gradient of a batch, or the local training of a round.
        unit_seconds: of one gradient of such a batch, forward and backward, or of one training, in the model's own
            dtype.
        products: with H, per sample and review; of a round pulls J^T u of all samples at once.
        epoch_batches: in a local epoch over the data given.
        actions: what became of the batches, by decision.
        warnings: of the first review that has any.
    """

    batch_size: int
    review_seconds: float
    slowest_seconds: float
    setup_seconds: float
    first_seconds: float
    unit: Literal["gradient", "training"]
    unit_seconds: float
    products: float
    epoch_batches: int
    actions: Mapping[str, int]
    warnings: list[str]

    @property
    def units(self) -> float:
        """A review in gradients of the batch, or in trainings of the round."""
        return self.review_seconds / self.unit_seconds

    @property
    def epoch_share(self) -> float:
        """A review of every batch, as a share of the local epoch's gradients."""
        return self.review_seconds / (self.epoch_batches * self.unit_seconds)

    @property
    def budget_seconds(self) -> float:
        """A budget that leaves room."""
        return ROOM * self.slowest_seconds


def review_cost(
    guard: Guard,
    samples: Samples,
    batch_size: int,
    repeats: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> ReviewCost:
    """Review honest updates of a few batches, or of rounds of local training where the release says so, and time it.

    Neither ledger nor log of the guard should be the real ones, since nothing of this leaves.

    Raises:
        SettingsError: fewer samples than a batch has.
    """
    if not 1 <= batch_size <= len(samples):
        raise SettingsError(
            f"expected a batch size between 1 and the {count(len(samples), 'sample')} given, found {batch_size}"
        )
    training = guard.client.spec.training
    decisions, units = list[Decision](), list[float]()
    started = time.perf_counter()
    with suppress(RiskauditError):  # what can't be reviewed shows in the reviews, in their words
        guard.prepare((samples.inputs[:batch_size], samples.targets[:batch_size]))
    setup = time.perf_counter() - started
    for number in range(repeats + 1):
        indices = [(number * batch_size + offset) % len(samples) for offset in range(batch_size)]
        batch = samples.inputs[indices], samples.targets[indices]
        update = honest_update(guard, *batch)
        started = time.perf_counter()
        _gradient(guard, *batch) if training is None else _train(guard, training, *batch)
        units.append(time.perf_counter() - started)
        decisions.append(guard.review(batch, update, local_steps=1))
        if progress is not None:
            progress(number + 1, repeats + 1)
    first, *later = (decision.seconds for decision in decisions)
    return ReviewCost(
        batch_size,
        review_seconds=statistics.median(later),
        slowest_seconds=max(later),
        setup_seconds=setup,
        first_seconds=first,
        unit="gradient" if training is None else "training",
        unit_seconds=statistics.median(units[1:]),
        products=statistics.median(decision.products / batch_size for decision in decisions),
        epoch_batches=max(1, len(samples) // batch_size),
        actions=dict(Counter(decision.action for decision in decisions)),
        warnings=next((decision.warnings for decision in decisions if decision.warnings), []),
    )


def honest_update(guard: Guard, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """The update that a client with the guard's release would send for a batch, noise included."""
    guard.client.refresh()
    mean = guard.client.mean(guard.client.batch(inputs, targets))
    parts = [part.float() for part in split(mean, guard.client.shapes.values())]
    law = guard.client.noise
    return parts if law is None else [SecureNoise(law.law, law.scale).added(part) for part in parts]


def _gradient(guard: Guard, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """The plain mean gradient of a batch, as training computes it."""
    parameters = [value for value in guard.model.parameters() if value.requires_grad]
    outputs = guard.model(inputs.to(parameters[0]))
    losses = guard.client.loss(outputs, targets.to(parameters[0].device))
    return torch.autograd.grad(losses.mean(), parameters, allow_unused=True)


def _train(guard: Guard, training: LocalTraining, inputs: Tensor, targets: Tensor) -> None:
    """The plain local training of a round, on a copy of the model."""
    model = copy.deepcopy(guard.model)
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(parameters, lr=training.lr, weight_decay=training.weight_decay)
        if training.optimizer == "adam"
        else torch.optim.SGD(parameters, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay)
    )
    inputs, targets = inputs.to(parameters[0]), targets.to(parameters[0].device)
    for positions in training.mini_batches(len(inputs)):
        optimizer.zero_grad()
        torch.autograd.backward(batch_loss(guard.client.live_loss, model(inputs[positions]), targets[positions]))
        optimizer.step()
