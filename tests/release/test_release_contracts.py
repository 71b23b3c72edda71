"""Both kinds of release against the contract of `Release`."""

from __future__ import annotations

from collections.abc import Callable

import oracles
import torch
from contracts.release import ReleaseContract, network, sample_means
from torch import Tensor, nn

from riskaudit.release import Batch, PerSampleRelease, Release
from riskaudit.release.batch_mean import BatchMeanRelease
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
