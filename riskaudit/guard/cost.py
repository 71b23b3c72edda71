"""What a review costs on this machine: to choose a budget before the first round."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from riskaudit.errors import SettingsError
from riskaudit.guard.decision import Decision
from riskaudit.guard.guard import Guard
from riskaudit.guard.noise.randomness import SecureNoise
from riskaudit.guard.updates import split
from riskaudit.inputs import Samples

# The budget that is recommended leaves so much room above the slowest review seen.
ROOM = 1.5


@dataclass(frozen=True)
class ReviewCost:
    """Medians over a few batches of the user's data.

    Attributes:
        batch_size: samples per review.
        review_seconds: of one review.
        slowest_seconds: of the slowest after the first.
        first_seconds: of the first one, which also looks at the model's layers.
        gradient_seconds: of one gradient of such a batch, forward and backward, in the model's own dtype.
        products: with H, per sample and review.
        epoch_batches: in a local epoch over the data given.
        actions: what became of the batches, by decision.
        warnings: of the first review that has any.
    """

    batch_size: int
    review_seconds: float
    slowest_seconds: float
    first_seconds: float
    gradient_seconds: float
    products: float
    epoch_batches: int
    actions: Mapping[str, int]
    warnings: list[str]

    @property
    def gradients(self) -> float:
        """A review in gradients of the batch."""
        return self.review_seconds / self.gradient_seconds

    @property
    def epoch_share(self) -> float:
        """A review of every batch, as a share of the local epoch's gradients."""
        return self.review_seconds / (self.epoch_batches * self.gradient_seconds)

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
    """Review honest updates of a few batches and time it.

    Neither ledger nor log of the guard should be the real ones, since nothing of this leaves.

    Raises:
        SettingsError: fewer samples than a batch has.
    """
    if not 1 <= batch_size <= len(samples):
        raise SettingsError(f"expected a batch size between 1 and the {len(samples)} samples given, found {batch_size}")
    decisions, gradients = list[Decision](), list[float]()
    for number in range(repeats + 1):
        indices = [(number * batch_size + offset) % len(samples) for offset in range(batch_size)]
        batch = samples.inputs[indices], samples.targets[indices]
        update = honest_update(guard, *batch)
        started = time.perf_counter()
        _gradient(guard, *batch)
        gradients.append(time.perf_counter() - started)
        decisions.append(guard.review(batch, update, local_steps=1))
        if progress is not None:
            progress(number + 1, repeats + 1)
    first, *later = (decision.seconds for decision in decisions)
    return ReviewCost(
        batch_size,
        review_seconds=statistics.median(later),
        slowest_seconds=max(later),
        first_seconds=first,
        gradient_seconds=statistics.median(gradients[1:]),
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
