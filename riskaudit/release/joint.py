"""Releases in which several samples leave together: what every one of them shares.

    sample steps, mean or local training; client steps, secure aggregation; server steps, noise, steps after it

A subclass makes one client's vector of its samples; what is done to it afterwards is the same for all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from riskaudit.errors import CoupledReleaseError, ReleaseError
from riskaudit.formatting import count
from riskaudit.release.affine_norms import AffineNormsApart
from riskaudit.release.base import Batch, Release, Upload, spec_of
from riskaudit.release.derivatives import Derivative, ReleasedChange, change_through, derivative_of
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.model import LossFunction, ModelFunction, mixes_samples
from riskaudit.release.shares import batch_loss, sample_losses
from riskaudit.release.steps import BoundStep, applied, bind_steps


@dataclass(frozen=True)
class Stages:
    """A release's steps by what they act on, for one client of one upload.

    Attributes:
        sample: on every sample's gradient.
        client: on the client's vector.
        server: on the mean over clients, before noise.
        last: after the noise.
    """

    sample: Sequence[BoundStep]
    client: Sequence[BoundStep]
    server: Sequence[BoundStep]
    last: Sequence[BoundStep]


class JointRelease(Release):
    """One upload of several samples.

    Args:
        model: see `ModelFunction`; batch norms without running statistics take those of each batch.
        loss: ``loss(outputs [B, ...], targets [B, ...])`` to a scalar, or to one number per sample.
        description: what is sent; read where it is text.

    Raises:
        ReleaseError: a text that can't be read, or a model that has no such release.
        CoupledReleaseError: steps on every sample's gradient, where there is none since layers mix the samples.
    """

    coupling: ClassVar[Literal["per_sample", "joint"]] = "joint"

    def __init__(self, model: nn.Module, loss: LossFunction, description: ReleaseSpec | str) -> None:
        spec = spec_of(description)
        super().__init__(ModelFunction(model, loss, mixes_samples=True), spec)
        self.mixes_samples = mixes_samples(model)
        if self.mixes_samples and spec.sample_steps:
            raise CoupledReleaseError(
                f"'{spec.sample_steps[0]}' acts on every sample's gradient, and batch norm with the statistics of the "
                "batch leaves no sample one of its own; put it after the mean, or let batch norm take its running "
                "statistics (`batch_norm=running` in a scan, eval() of these layers in a training)"
            )
        self._stages: dict[int, Stages] = {}
        _, sample = bind_steps(spec.sample_steps, self.context)
        _, client = bind_steps(spec.client_steps, sample)
        _, noisy = bind_steps(spec.server_steps, client)
        _, self.sent = bind_steps(spec.steps_after_noise, noisy)
        self.num_noisy, self.num_entries = noisy.num_entries, self.sent.num_entries
        # What is drawn once is drawn outside of any transform.
        self.stages(0)

    @abstractmethod
    def samples_per_client(self, num_samples: int) -> int:
        """How many samples one client's vector is made of, given how many samples there are in all."""

    @abstractmethod
    def transformed_client(self, batch: Batch, steps: Sequence[BoundStep]) -> Tensor:
        """One client's vector of its samples, by torch.func transforms; ``steps`` act on every sample's gradient."""

    @abstractmethod
    def plain_client(self, batch: Batch, steps: Sequence[BoundStep]) -> Tensor:
        """`transformed_client` by plain autograd."""

    @final
    @override
    def with_spec(self, spec: ReleaseSpec) -> Self:
        return type(self)(self.model, self.loss, spec)

    @final
    @override
    def with_model(self, model: nn.Module) -> Self:
        return type(self)(model, self.loss, self.spec)

    @final
    @override
    def uploads(self, num_samples: int) -> Sequence[Upload]:
        """Which samples leave together, in the order of the data.

        Raises:
            ReleaseError: so many samples can't be divided so.
        """
        clients = self.spec.num_clients
        size = clients * self.samples_per_client(num_samples)
        if num_samples < size:
            raise ReleaseError(
                f"expected {count(size, 'sample')} at least, of which '{self.spec}' makes one upload, found "
                f"{num_samples}; add samples, or average fewer"
            )
        if num_samples % size:
            raise ReleaseError(
                f"expected a number of samples that uploads of {size} divide, found {num_samples}; leave out "
                f"{num_samples % size}, or change '{self.spec}'"
            )
        return [Upload(tuple(range(first, first + size))) for first in range(0, num_samples, size)]

    @final
    @override
    def transformed_mean(self, batch: Batch) -> Tensor:
        return self._means(batch, self.transformed_client)

    @final
    @override
    def plain_mean(self, batch: Batch) -> Tensor:
        return self._means(batch, self.plain_client)

    @final
    @override
    def after_noise(self, noise: Tensor) -> Tensor:
        return applied(self.stages(0).last, noise)

    @override
    def losses(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return torch.cat([self._losses_together(upload) for upload in batch.each_upload()])

    @override
    def before_steps(self) -> Self:
        if not self.outermost and not self.spec.steps_after_noise:
            return self
        inner = self.spec.steps[: len(self.spec.steps) - len(self.outermost)]
        return self.with_spec(replace(self.spec, steps=inner, noise=None, steps_after_noise=()))

    @override
    def derivative(self, bare: Tensor, batch: Batch) -> Derivative:
        return derivative_of(bare, [*self.outermost, *self.stages(0).last])

    @override
    def released_change(self, bare: Tensor, change: Tensor, batch: Batch) -> ReleasedChange:
        return change_through(bare, change, [*self.outermost, *self.stages(0).last])

    @property
    def outermost(self) -> Sequence[BoundStep]:
        """The last steps before the noise, which act on whole uploads and are the same for every one of them."""
        stages = self.stages(0)
        steps = stages.server if self.spec.num_clients > 1 else stages.client
        positions = [position for position, bound in enumerate(steps) if bound.step.redrawn]
        return steps[positions[-1] + 1 :] if positions else steps

    def run_together(self, parameters: dict[str, Tensor], batch: Batch) -> Tensor:
        """The mean loss of a mini-batch as training computes it, a scalar."""
        # Attention's other kernels have no second derivatives.
        with sdpa_kernel(SDPBackend.MATH), AffineNormsApart():
            outputs, added = self.function.run_with_added(parameters, batch.inputs)
        if batch.left_out is not None:
            left_out = batch.left_out.reshape(-1, *(1,) * (outputs.ndim - 1))
            outputs = torch.where(left_out, outputs.detach(), outputs)
            added = None if added is None else torch.where(batch.left_out, added.detach(), added)
        return batch_loss(self.loss, outputs, batch.targets, added)

    def stages(self, number: int) -> Stages:
        """The steps for a client, whose number decides what is drawn."""
        if not any(step.redrawn for step in self.spec.all_steps):
            number = 0
        if number not in self._stages:
            context = replace(self.context, upload=number)
            sample, context = bind_steps(self.spec.sample_steps, context)
            client, context = bind_steps(self.spec.client_steps, context)
            server, context = bind_steps(self.spec.server_steps, context)
            last, _ = bind_steps(self.spec.steps_after_noise, context)
            self._stages[number] = Stages(sample, client, server, last)
        return self._stages[number]

    def _losses_together(self, upload: Batch) -> Tensor:
        """Of the samples of one upload, each from its output in its client's batch."""
        size = len(upload) // self.spec.num_clients
        parts = []
        for first in range(0, len(upload), size):
            inputs, targets = (tensor[first : first + size] for tensor in (upload.inputs, upload.targets))
            outputs, added = self.function.run_with_added(self.parameters, inputs)
            parts.append(sample_losses(self.loss, outputs, targets, added))
        return torch.cat(parts)

    def _means(self, batch: Batch, make: Callable[[Batch, Sequence[BoundStep]], Tensor]) -> Tensor:
        numbers = batch.numbers or (0,) * batch.num_uploads
        pairs = zip(batch.each_upload(), numbers, strict=True)
        return torch.stack([self._mean(upload, number, make) for upload, number in pairs])

    def _mean(self, upload: Batch, number: int, make: Callable[[Batch, Sequence[BoundStep]], Tensor]) -> Tensor:
        """r of one upload before noise, [P']."""
        clients = self.spec.num_clients
        size = len(upload) // clients
        total: Tensor | None = None
        for client in range(clients):
            stages = self.stages(number + client * size)
            samples = upload.samples(range(client * size, (client + 1) * size))
            vector = applied(stages.client, make(samples, stages.sample))
            total = vector if total is None else total + vector
        assert total is not None
        stages = self.stages(number)
        return applied(stages.last, applied(stages.server, total / clients if clients > 1 else total))
