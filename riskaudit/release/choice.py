"""The release that a description stands for."""

from __future__ import annotations

from torch import nn

from riskaudit.release.base import Release, spec_of
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.local_training import LocalTrainingRelease
from riskaudit.release.mean import MeanRelease
from riskaudit.release.model import LossFunction
from riskaudit.release.per_sample import PerSampleRelease


def make_release(model: nn.Module, loss: LossFunction, description: ReleaseSpec | str) -> Release:
    """What leaves a client that has this model and loss.

    Args:
        model: in eval mode; batch norms that shall take the statistics of each batch have none of their own
            (`with_batch_statistics`).
        loss: see `PerSampleRelease` and `JointRelease`.
        description: what is sent; read where it is text.

    Raises:
        ReleaseError: a text that can't be read, or a model that has no such release.
        CoupledReleaseError: samples that leave alone, and a layer that mixes them.
    """
    spec = spec_of(description)
    if not spec.is_joint:
        return PerSampleRelease(model, loss, spec)
    return MeanRelease(model, loss, spec) if spec.training is None else LocalTrainingRelease(model, loss, spec)
