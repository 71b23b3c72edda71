"""The release: what leaves the client. Client, proxies, attacks, guard and report share this object.

Samples leave in uploads: each is one vector r(x_1 ... x_n) of P' numbers, made of n samples, plus noise of a known law.
Everything that is said of a sample is read off r as a differentiable function of the upload's inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, final

import torch
from torch import Tensor, nn

from riskaudit.errors import ReleaseError
from riskaudit.release.derivatives import Chain, Derivative, ReleasedChange
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.model import ModelFunction
from riskaudit.release.noise import Noise
from riskaudit.release.steps import StepContext


@dataclass(frozen=True)
class Upload:
    """What leaves together.

    Attributes:
        positions: of its n samples among all samples of a client.
    """

    positions: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def number(self) -> int:
        """What tells it from the other uploads of a client: its first sample's position."""
        return self.positions[0]


@dataclass(frozen=True)
class Batch:
    """U uploads of n samples each, one after the other.

    Attributes:
        inputs: [U n, *S], in data units.
        targets: [U n, ...].
        upload_size: n; 1 where every sample leaves alone.
        numbers: of the uploads, for steps that are drawn anew for each; all 0 where there are none.
        left_out: whether a sample's own loss trains nothing, [U n] bool, though layers that mix samples see it; None
            where all of them train. Only joint releases look at it.
        lengths: tokens of each sample, [U n] int64, where the inputs are embedded texts that were padded to one length.
    """

    inputs: Tensor
    targets: Tensor
    upload_size: int = 1
    numbers: tuple[int, ...] | None = None
    left_out: Tensor | None = None
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def num_uploads(self) -> int:
        """U."""
        return len(self) // self.upload_size

    def select(self, indices: list[int]) -> Batch:
        """Some of the uploads, in the order given; one may occur several times."""
        numbers = None if self.numbers is None else tuple(self.numbers[index] for index in indices)
        if self.upload_size != 1:
            size = range(self.upload_size)
            indices = [index * self.upload_size + offset for index in indices for offset in size]
        left_out = None if self.left_out is None else self.left_out[indices]
        lengths = None if self.lengths is None else self.lengths[indices]
        return Batch(self.inputs[indices], self.targets[indices], self.upload_size, numbers, left_out, lengths)

    def samples(self, positions: Sequence[int]) -> Batch:
        """Some of the samples, by their positions in the batch, as one upload."""
        indices = list(positions)
        left_out = None if self.left_out is None else self.left_out[indices]
        lengths = None if self.lengths is None else self.lengths[indices]
        return Batch(self.inputs[indices], self.targets[indices], len(indices), left_out=left_out, lengths=lengths)

    def in_uploads(self, uploads: Sequence[Upload]) -> Batch:
        """Samples of this batch as uploads of one size.

        Raises:
            ValueError: they aren't of one size.
        """
        sizes = {len(upload) for upload in uploads}
        if len(sizes) != 1:
            raise ValueError(f"expected uploads of one size, found sizes {sorted(sizes)}; take each size by itself")
        positions = [position for upload in uploads for position in upload.positions]
        numbers = tuple(upload.number for upload in uploads)
        lengths = None if self.lengths is None else self.lengths[positions]
        return Batch(self.inputs[positions], self.targets[positions], sizes.pop(), numbers, lengths=lengths)

    def each_upload(self) -> Iterator[Batch]:
        """The uploads, one by one."""
        return (self.select([index]) for index in range(self.num_uploads))

    def with_inputs(self, inputs: Tensor) -> Batch:
        """The same targets and uploads with other inputs [U n, *S]."""
        return replace(self, inputs=inputs)

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every sample's input [*S] and target [...]."""
        return zip(self.inputs, self.targets, strict=True)


class Release(ABC):
    """What leaves a client that has this model and loss.

    A subclass says which samples leave together and what is made of them; noise, observations and densities follow.

    Args:
        function: the model and its loss.
        spec: what the release was described by.

    Attributes:
        model: the module itself.
        loss: ``loss(outputs [1, ...], targets [1, ...])`` to a scalar.
        parameters: the trainable ones, by name, without graph.
        context: names and shapes of what a gradient [P] consists of, its dtype and device.
        sent: of what an upload [P'] consists of; the same where nothing is left out.
        num_entries: P', numbers in one upload; P where nothing is left out.
        num_noisy: numbers that the noise is added to; P' unless entries are left out after it.
        dtype: of what leaves.
        device: of what leaves.
    """

    coupling: ClassVar[Literal["per_sample", "joint"]]
    """Whether every sample leaves alone, or several leave together in a vector that depends on all of them."""

    def __init__(self, function: ModelFunction, spec: ReleaseSpec) -> None:
        self.function, self.spec = function, spec
        self.model, self.loss, self.parameters = function.model, function.loss, function.parameters
        self.dtype, self.device = function.dtype, function.device
        shapes = {name: value.shape for name, value in self.parameters.items()}
        self.context = StepContext(shapes, self.dtype, self.device, function=function)
        self.sent = self.context
        self.num_entries = self.num_noisy = self.context.num_entries

    @abstractmethod
    def uploads(self, num_samples: int) -> Sequence[Upload]:
        """Which of a client's samples leave together: each in exactly one upload, in their order."""

    @abstractmethod
    def transformed_mean(self, batch: Batch) -> Tensor:
        """`mean` by torch.func transforms, and under them."""

    @abstractmethod
    def plain_mean(self, batch: Batch) -> Tensor:
        """`mean` by `torch.autograd` alone, for code that no torch.func transform can run.

        Differentiable in the inputs where they require it, and only outside torch.func transforms.
        """

    def before_steps(self) -> Release:
        """The release without steps whose choices are constant around a sample, and without noise; itself if none."""
        return self

    def derivative(self, bare: Tensor, batch: Batch) -> Derivative:
        """The derivative of those steps at `before_steps`' means [U, P] of a batch."""
        return Chain()

    def released_change(self, bare: Tensor, change: Tensor, batch: Batch) -> ReleasedChange:
        """What those steps make of a change [U, P] of `before_steps`' means [U, P] of a batch, of any size."""
        return ReleasedChange.told(change.norm(dim=1).double())

    @abstractmethod
    def with_spec(self, spec: ReleaseSpec) -> Self:
        """The same client's release by another description."""

    @abstractmethod
    def with_model(self, model: nn.Module) -> Self:
        """The same release of another model, with parameters of the same names and shapes."""

    @abstractmethod
    def after_noise(self, noise: Tensor) -> Tensor:
        """What leaves, [P'], of noise [`num_noisy`] that was added where the description says."""

    @final
    def mean(self, batch: Batch) -> Tensor:
        """r of every upload before noise, [U, P'], differentiable in the inputs; not to be called under a transform."""
        return self.function.or_plainly(lambda: self.transformed_mean(batch), lambda: self.plain_mean(batch))

    def losses(self, batch: Batch) -> Tensor:
        """Loss of every sample, [U n], from its own output."""
        return self.function.losses(batch)

    @final
    def run(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The model's outputs for inputs [B, *S] with these trainable parameters."""
        return self.function.run(parameters, inputs)

    @final
    @property
    def noise(self) -> Noise | None:
        """Law of the noise on every entry of an upload, or None when undefended."""
        return self.spec.noise

    @final
    def with_noise(self, std: float) -> Self:
        """The same release with Gaussian noise of this std per released entry instead of its own."""
        return self.with_spec(self.spec.with_noise(Noise("gaussian", std)))

    @final
    def without_noise(self) -> Self:
        """The same release without its noise."""
        return self.with_spec(self.spec.with_noise(None))

    @final
    def sample_noise(self, generator: torch.Generator) -> Tensor:
        """One draw of the noise as it leaves the client, [P'], on the release's device.

        The generator should live on the CPU, so that every device sees the same noise.

        Raises:
            ReleaseError: the release has no noise.
        """
        drawn = self._required_noise().sample(self.num_noisy, generator, self.dtype)
        return self.after_noise(drawn.to(self.device))

    @final
    def observe(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """What the server receives, [U, P']: the mean plus one draw of noise per upload, if there is any."""
        mean = self.mean(batch)
        if self.noise is None:
            return mean
        return mean + torch.stack([self.sample_noise(generator) for _ in range(len(mean))])

    @final
    def log_prob(self, observation: Tensor, batch: Batch) -> Tensor:
        """Log density of an observation [U, P'] if the inputs were ``batch``, [U], differentiable in them.

        What an attack by likelihood maximises, whatever the coupling; the attacks here take the density from the
        residual that their Jacobian has made already.

        Raises:
            ReleaseError: the release has no noise, hence no density.
        """
        return self._required_noise().log_density(observation - self.mean(batch), self.noisy_entries)

    @final
    @property
    def noisy_entries(self) -> Tensor:
        """1 where a released entry carries noise, 0 where a later step removes it for everybody, [P'].

        All ones for a release without noise.
        """
        return self.after_noise(torch.ones(self.num_noisy, dtype=self.dtype, device=self.device))

    def _required_noise(self) -> Noise:
        if self.noise is None:
            raise ReleaseError(
                f"the release '{self.spec}' has no noise, so its observations have no density; "
                "use with_noise for a reference noise"
            )
        return self.noise


def spec_of(description: ReleaseSpec | str) -> ReleaseSpec:
    """A description, read where it is text.

    Raises:
        ReleaseError: see `ReleaseSpec.parse`.
    """
    return ReleaseSpec.parse(description) if isinstance(description, str) else description
