"""Training with a defence: every step goes by what leaves, as the server sees it.

    theta <- theta - eta (1 / U) sum_u [ r(upload u; theta) + n_u ]

A step's batch is divided into U uploads as the release has them (`Release.uploads`): one per sample where every sample
leaves alone, one per N samples after ``mean:N``. Each is the release's mean with a draw of its noise of its own, and
the server averages them. After local training what leaves is a difference of weights already, which the server takes
as it is: eta is 1 then (federated averaging, McMahan et al., AISTATS 2017). Plain SGD without momentum otherwise.

The network stays in eval mode: dropout is off, and batch norm computes with its running statistics, which stay as
they were. An epoch takes the samples in a random order and leaves out what doesn't fill a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from riskaudit.audit.client import Client
from riskaudit.audit.transformed import transformed
from riskaudit.copying import copy_model
from riskaudit.errors import ReleaseError, SamplesError, SettingsError
from riskaudit.formatting import count
from riskaudit.inputs import Samples, fit_together
from riskaudit.release import Batch, Release, ReleaseSpec, make_release
from riskaudit.statistics.seeding import derived_seed

# Streams of random numbers of a training: the order of the data, and the noise.
ORDER_STREAM, NOISE_STREAM = 11, 12
# Numbers of uploads in memory at once.
MOST_ENTRIES = 1 << 26
# Samples whose loss is computed at once.
LOSS_BATCH = 256


class DivergedError(Exception):
    """Something isn't finite; the message says what, and after how many steps."""


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes:
        epochs: over the training samples.
        batch_size: samples of a step.
        rate: eta, where gradients leave.
    """

    epochs: int
    batch_size: int
    rate: float

    def num_steps(self, num_samples: int) -> int:
        """Steps of a whole training."""
        return self.epochs * (num_samples // self.batch_size)


@dataclass(frozen=True, eq=False)
class Trainee:
    """A copy of a client's model that is trained by what leaves.

    Attributes:
        release: of the model, whose parameters training moves.
        samples: to train on, each alone, as the release transforms them.
    """

    release: Release
    samples: Batch

    @classmethod
    def of(cls, client: Client, spec: ReleaseSpec, samples: Samples) -> Trainee:
        """The client's model, trained on samples that fit it (`fitted`) by another release."""
        if spec.transformation is not None:
            samples = transformed(samples, spec.transformation)
        model = copy_model(client.checkpoint.model).to(device=client.device, dtype=client.release.dtype)
        inputs = samples.inputs.to(device=client.device, dtype=client.release.dtype)
        return cls(make_release(model, client.loss, spec), Batch(inputs, samples.targets.to(client.device)))


def fitted(client: Client, samples: Samples, what: str) -> Samples:
    """Samples as a client's model takes them.

    Args:
        client: whose model it is.
        samples: to train or to test on.
        what: the parameter that names them.

    Raises:
        SamplesError: it doesn't take them.
    """
    try:
        found = fit_together(client.checkpoint, samples, client.loss)[1]
    except SamplesError as error:
        raise SamplesError(f"`{what}`: {error}") from error
    shapes = tuple(client.samples.inputs.shape[1:]), tuple(found.inputs.shape[1:])
    if shapes[0] != shapes[1]:
        raise SamplesError(f"expected `{what}` to hold samples of shape {shapes[0]} as `data` does, found {shapes[1]}")
    return found


def check_batch(plan: Plan, samples: Samples) -> None:
    """Refuse batches that the samples don't fill.

    Raises:
        SettingsError: there are fewer.
    """
    if len(samples) < plan.batch_size:
        raise SettingsError(
            f"expected at least {count(plan.batch_size, 'sample')} to train on, a batch of them, found "
            f"{len(samples)}; give more, or a smaller `training_batch`"
        )


def check_uploads(plan: Plan, release: Release) -> None:
    """Refuse batches that aren't whole uploads.

    Raises:
        SettingsError: why not.
    """
    try:
        release.uploads(plan.batch_size)
    except ReleaseError as error:
        raise SettingsError(f"`training_batch={plan.batch_size}` doesn't go with it: {error}") from error


def train(release: Release, samples: Batch, plan: Plan, seed: int) -> Iterator[int]:
    """Train a release's own model in place, one step for each number that is taken.

    Args:
        release: of the model; its parameters are those that are moved.
        samples: to train on, each alone.
        plan: how.
        seed: of the order of the samples and of the noise; the order is the same for every release.

    Yields:
        The number of steps that have been made, from 0.

    Raises:
        DivergedError: an update that isn't finite.
    """
    order = torch.Generator().manual_seed(derived_seed(seed, ORDER_STREAM))
    noise = torch.Generator().manual_seed(derived_seed(seed, NOISE_STREAM))
    redrawn = any(step.redrawn for step in release.spec.all_steps)
    rate = plan.rate if release.spec.training is None else 1.0
    made = 0
    yield made
    for _ in range(plan.epochs):
        places = torch.randperm(len(samples), generator=order).tolist()
        for first in range(0, len(places) - plan.batch_size + 1, plan.batch_size):
            batch = samples.samples(places[first : first + plan.batch_size])
            # What is drawn for an upload goes by its number, which is never that of another step.
            update = average_upload(release.with_spec(release.spec) if redrawn else release, batch, made, noise)
            if not bool(update.isfinite().all()):
                raise DivergedError(f"the update of step {made + 1} is not finite")
            _move(release, update, rate)
            made += 1
            yield made


def average_upload(release: Release, batch: Batch, step: int, noise: torch.Generator) -> Tensor:
    """What the server receives of a batch, averaged over its uploads, [P'], with their noise.

    Args:
        release: of the model as it is.
        batch: the samples of one step.
        step: steps before this one.
        noise: on the CPU.
    """
    uploads = release.uploads(len(batch))
    numbers = [step * len(batch) + upload.number for upload in uploads]
    together = max(1, MOST_ENTRIES // (release.num_entries * len(uploads[0])))
    total = torch.zeros(release.num_entries, dtype=release.dtype, device=release.device)
    for first in range(0, len(uploads), together):
        part = batch.in_uploads(uploads[first : first + together])
        part = Batch(part.inputs, part.targets, part.upload_size, tuple(numbers[first : first + together]))
        total += release.observe(part, noise).detach().sum(0)
    return total / len(uploads)


def _move(release: Release, update: Tensor, rate: float) -> None:
    """Take a step along an update [P'] in place; parameters that aren't sent stay."""
    with torch.no_grad():
        for name, part in release.sent.split(update).items():
            weight = release.parameters[name]
            weight.sub_(rate * part.reshape(weight.shape))


def mean_loss(release: Release, samples: Batch) -> float:
    """The mean over samples of the loss of each.

    Raises:
        DivergedError: it isn't finite.
    """
    total = 0.0
    for first in range(0, len(samples), LOSS_BATCH):
        part = slice(first, first + LOSS_BATCH)
        total += float(release.function.losses(Batch(samples.inputs[part], samples.targets[part])).detach().sum())
    mean = total / len(samples)
    if not torch.isfinite(torch.tensor(mean)):
        raise DivergedError("the loss on the training data is not finite")
    return mean


def check_weights(model: nn.Module) -> None:
    """Refuse weights that aren't finite.

    Raises:
        DivergedError: some aren't.
    """
    if not all(bool(value.isfinite().all()) for value in model.parameters()):
        raise DivergedError("the weights are not finite")
