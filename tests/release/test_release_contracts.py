"""Every kind of release against the contract of `Release`, and one of local training that only this file has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import oracles
import torch
from contracts.release import ReleaseContract, cross_entropy, network, sample_means
from torch import Tensor, nn
from torch.func import functional_call, grad

from riskaudit.release import Batch, PerSampleRelease, Release, ReleaseSpec, Upload
from riskaudit.release.batch_mean import BatchMeanRelease
from riskaudit.release.model import ModelFunction
from riskaudit.release.steps import Step, StepContext
from riskaudit.release.steps.clip import Clip
from riskaudit.release.steps.mask import Mask

Loss = Callable[[Tensor, Tensor], Tensor]


def masked(ratio: float, seed: int) -> oracles.Change:
    count = sum(parameter.numel() for parameter in network().parameters())
    vectors = StepContext({"": torch.Size([count])}, torch.float64, torch.device("cpu"))
    return oracles.masked(Mask(ratio, seed).bind(vectors)(torch.ones(count, dtype=torch.float64)))


class PerSampleContract(ReleaseContract):
    text = "gradient"

    def changes(self) -> tuple[oracles.Change, ...]:
        return ()

    def make(self, loss: Loss) -> Release:
        return PerSampleRelease(network(), loss, self.text)

    def expected_mean(self, model: nn.Module, batch: Batch) -> Tensor:
        return sample_means(model, batch, self.changes())


class TestGradient(PerSampleContract):
    linear = True


class TestClippedAndPruned(PerSampleContract):
    # Some samples are longer than the bound, some aren't.
    text = "clip:1.6,prune:0.3"

    def changes(self) -> tuple[oracles.Change, ...]:
        return oracles.clipped(1.6), oracles.pruned(0.3)


class TestMasked(PerSampleContract):
    text, linear = "mask:0.4:7", True

    def changes(self) -> tuple[oracles.Change, ...]:
        return (masked(0.4, 7),)


class BatchMeanContract(ReleaseContract):
    coupling, reduction, text, upload_size = "joint", "mean", "gradient", 2

    def changes(self) -> tuple[oracles.Change, ...]:
        return ()

    def make(self, loss: Loss) -> Release:
        return BatchMeanRelease(network(), loss, self.text, self.reduction)

    def expected_mean(self, model: nn.Module, batch: Batch) -> Tensor:
        alone = sample_means(model, batch, self.changes())
        total = alone.reshape(batch.num_uploads, batch.upload_size, -1).sum(1)
        return total / (batch.upload_size if self.reduction == "mean" else 1)


class TestBatchMean(BatchMeanContract):
    linear = True


class TestBatchSum(BatchMeanContract):
    reduction, linear = "sum", True


class TestBatchMeanOfClipped(BatchMeanContract):
    text = "clip:1.6"

    def changes(self) -> tuple[oracles.Change, ...]:
        return (oracles.clipped(1.6),)


class TestBatchSumOfMasked(BatchMeanContract):
    text, reduction, linear = "mask:0.4:7", "sum", True

    def changes(self) -> tuple[oracles.Change, ...]:
        return (masked(0.4, 7),)


class LocalTraining(Release):
    """theta_0 - theta_K after two epochs of SGD with momentum, a sample a step, and the steps on the difference.

    Nothing but what `Release` asks for: that it meets the contract shows what the interface can hold.
    """

    coupling = "joint"
    rate, momentum, epochs = 0.2, 0.5, 2

    def __init__(self, model: nn.Module, loss: Loss, spec: ReleaseSpec) -> None:
        super().__init__(ModelFunction(model, loss), spec)
        self._apply = [step.bind(self.context) for step in spec.steps]

    def uploads(self, num_samples: int) -> Sequence[Upload]:
        starts = range(0, num_samples, 2)
        return [Upload(tuple(range(first, min(first + 2, num_samples)))) for first in starts]

    def with_spec(self, spec: ReleaseSpec) -> LocalTraining:
        return LocalTraining(self.model, self.loss, spec)

    def after_noise(self, noise: Tensor) -> Tensor:
        return noise

    def transformed_mean(self, batch: Batch) -> Tensor:
        return torch.stack([self._released(upload) for upload in batch.each_upload()])

    def plain_mean(self, batch: Batch) -> Tensor:
        return self.transformed_mean(batch)

    def _released(self, upload: Batch) -> Tensor:
        theta, velocity = dict(self.parameters), dict.fromkeys(self.parameters, 0.0)
        for x, target in [*upload.pairs()] * self.epochs:
            gradients = grad(lambda p, x=x, t=target: self.loss(self.run(p, x[None]), t[None]))(theta)
            velocity = {name: self.momentum * velocity[name] + gradients[name] for name in theta}
            theta = {name: theta[name] - self.rate * velocity[name] for name in theta}
        vector = torch.cat([(self.parameters[name] - theta[name]).reshape(-1) for name in theta])
        for apply in self._apply:
            vector = apply(vector)
        return vector


class TestLocalTraining(ReleaseContract):
    coupling, upload_size = "joint", 2
    steps: tuple[Step, ...] = ()

    def make(self, loss: Loss) -> Release:
        return LocalTraining(network(), loss, ReleaseSpec(self.steps))

    def expected_mean(self, model: nn.Module, batch: Batch) -> Tensor:
        """By plain autograd on the module's own weights."""
        return torch.stack([self.trained(model, upload) for upload in batch.each_upload()])

    def trained(self, model: nn.Module, upload: Batch) -> Tensor:
        first = [value.detach().clone().requires_grad_() for value in model.parameters()]
        names = [name for name, _ in model.named_parameters()]
        theta, velocity = first, [torch.zeros_like(value) for value in first]
        for x, target in [*upload.pairs()] * LocalTraining.epochs:
            outputs = functional_call(model, dict(zip(names, theta, strict=True)), (x[None],))
            gradients = torch.autograd.grad(cross_entropy(outputs, target[None]), theta, create_graph=True)
            velocity = [LocalTraining.momentum * v + g for v, g in zip(velocity, gradients, strict=True)]
            theta = [value - LocalTraining.rate * v for value, v in zip(theta, velocity, strict=True)]
        difference = torch.cat([(a - b).reshape(-1) for a, b in zip(first, theta, strict=True)])
        for step in self.steps:
            assert isinstance(step, Clip)
            difference = oracles.clipped(step.bound)(difference)
        return difference


class TestClippedLocalTraining(TestLocalTraining):
    # One upload's difference is longer than the bound, the other's isn't.
    steps = (Clip(1.1),)
