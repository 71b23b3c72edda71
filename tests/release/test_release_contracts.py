"""Every kind of release against the contract of `Release`."""

from __future__ import annotations

from collections.abc import Callable

import joint_oracles
import numpy as np
import oracles
import pytest
import torch
from contracts.release import ReleaseContract, cross_entropy, network, sample_means, samples
from torch import Tensor, nn

from riskaudit.release import Batch, PerSampleRelease, Release, make_release, with_batch_statistics
from riskaudit.release.steps import StepContext
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


def released(text: str) -> joint_oracles.Released:
    """What a description makes of one client's samples, after its mean or its training."""
    first, *changes = RELEASED[text]

    def upload(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        vector = first(model, x, targets)
        for change in changes:
            vector = change(vector)
        return vector

    return upload


def dropped(vector: Tensor, probability: float, number: int) -> Tensor:
    draws = np.random.default_rng(number).random(len(vector))
    return torch.where(torch.from_numpy(draws < probability), 0.0, vector)


def part(first: int, end: int | None = None) -> oracles.Change:
    return lambda vector: vector[first:end]


mean, trained = joint_oracles.mean_gradient, joint_oracles.trained
RELEASED: dict[str, list] = {
    "mean:2": [mean],
    "clip:1.6,mean:2,prune:0.3": [joint_oracles.mean_of(oracles.clipped(1.6)), oracles.pruned(0.3)],
    "mean:2,clip:0.9,share:3.*": [mean, oracles.clipped(0.9), part(40)],
    "mean:2,gradient-of-clients": [mean, oracles.clipped(0.9)],
    "mean:3": [mean],
    "local:epochs=2:batch=1:lr=0.2": [trained(2, 1, 0.2)],
    "local:epochs=2:batch=1:lr=0.2:momentum=0.5:weight_decay=0.1,clip:1.1": [
        trained(2, 1, 0.2, 0.5, 0.1), oracles.clipped(1.1),
    ],
    "local:epochs=2:batch=2:lr=0.05:optimizer=adam:weight_decay=0.1": [trained(2, 2, 0.05, 0.0, 0.1, "adam")],
    "local:epochs=2:batch=all:lr=0.3": [trained(2, 9, 0.3)],
    "local:epochs=1:batch=1:lr=0.3:momentum=0.5": [trained(1, 1, 0.3, 0.5)],
}  # fmt: skip


class JointContract(ReleaseContract):
    coupling, upload_size, divisible, indivisible = "joint", 2, (2, 6), (0, 1, 5)
    text = "mean:2"

    def make(self, loss: Loss) -> Release:
        return make_release(self.build(), loss, self.text)

    def build(self) -> nn.Module:
        return network()

    def expected_mean(self, model: nn.Module, batch: Batch) -> Tensor:
        numbers = batch.numbers or (0,) * batch.num_uploads
        pairs = zip(batch.each_upload(), numbers, strict=True)
        return torch.stack([self.expected_upload(model, upload, number) for upload, number in pairs])

    def expected_upload(self, model: nn.Module, upload: Batch, number: int) -> Tensor:
        """[P'] of one upload."""
        return released(self.text)(model, upload.inputs, upload.targets)


class TestMean(JointContract):
    linear = True


class TestMeanOfClippedThenPruned(JointContract):
    text = "clip:1.6,mean:2,prune:0.3"


class TestSharedPartOfClippedMean(JointContract):
    text = "mean:2,clip:0.9,share:3.*"


class TestSecureAggregationOfClippedMeans(JointContract):
    text, upload_size, divisible, indivisible = "mean:2,clip:0.9,secagg:2", 4, (4, 8), (2, 6)

    @pytest.fixture
    def batch(self) -> Batch:
        plain = samples(8)
        return Batch(plain.inputs, plain.targets, 4)

    def expected_upload(self, model: nn.Module, upload: Batch, number: int) -> Tensor:
        one = released("mean:2,gradient-of-clients")
        return joint_oracles.of_clients(2, one)(model, upload.inputs, upload.targets)


class TestDropoutOfEveryUpload(JointContract):
    text, linear = "mean:2,dropout:0.4", True

    @pytest.fixture
    def batch(self) -> Batch:
        return samples(4).in_uploads(self.make(cross_entropy).uploads(4))

    def expected_upload(self, model: nn.Module, upload: Batch, number: int) -> Tensor:
        vector = mean(model, upload.inputs, upload.targets)
        return dropped(vector, 0.4, number)


class BatchNormContract(JointContract):
    """Two of three samples of a batch alone would be told apart by their signs only."""

    upload_size, divisible, indivisible = 3, (3, 6), (2, 4)

    @pytest.fixture
    def batch(self) -> Batch:
        plain = samples(6)
        return Batch(plain.inputs, plain.targets, 3)

    def build(self) -> nn.Module:
        torch.manual_seed(2)
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
        return with_batch_statistics(model.double().eval())

    def expected_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return torch.cat([super(BatchNormContract, self).expected_losses(model, each) for each in batch.each_upload()])


class TestMeanUnderBatchNorm(BatchNormContract):
    text, linear = "mean:3", True


class TestTrainingUnderBatchNorm(BatchNormContract):
    text, indivisible = "local:epochs=2:batch=all:lr=0.3", (0,)


class TrainingContract(JointContract):
    divisible, indivisible = (1, 2, 5), (0,)


class TestSgd(TrainingContract):
    text = "local:epochs=2:batch=1:lr=0.2"


@pytest.mark.slow
class TestClippedMomentum(TrainingContract):
    # One upload's difference is longer than the bound, the other's isn't.
    text = "local:epochs=2:batch=1:lr=0.2:momentum=0.5:weight_decay=0.1,clip:1.1"


class TestAdam(TrainingContract):
    text = "local:epochs=2:batch=2:lr=0.05:optimizer=adam:weight_decay=0.1"


@pytest.mark.slow
class TestSecureAggregationOfTraining(TrainingContract):
    text = "local:epochs=1:batch=1:lr=0.3:momentum=0.5,share:1.*,dropout:0.2,secagg:2,clip:0.4"
    upload_size, divisible, indivisible = 4, (2, 6), (0, 1, 5)

    @pytest.fixture
    def batch(self) -> Batch:
        plain = samples(8)
        return Batch(plain.inputs, plain.targets, 4, (0, 4))

    def expected_upload(self, model: nn.Module, upload: Batch, number: int) -> Tensor:
        total = torch.zeros(40, dtype=torch.float64)
        for first in (0, 2):
            one = released("local:epochs=1:batch=1:lr=0.3:momentum=0.5")
            vector = one(model, upload.inputs[first : first + 2], upload.targets[first : first + 2])[:40]
            total = total + dropped(vector, 0.2, number + first)
        return oracles.clipped(0.4)(total / 2)
