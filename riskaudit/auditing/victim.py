"""The client that is audited: its model, loss, release and samples, checked against each other and made ready."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from riskaudit.auditing.checks import refuse_coupling
from riskaudit.auditing.prior import ChosenPrior, choose_prior
from riskaudit.auditing.settings import AuditSettings
from riskaudit.inputs import Checkpoint, Loss, Samples, check_compatibility, load_loss
from riskaudit.jacobian import JacobianMaker, jacobian_maker
from riskaudit.release import Batch, Release

# Samples on which the Jacobian is tried before the work begins.
TRIED_SAMPLES = 4


@dataclass(frozen=True, eq=False)
class Victim:
    """What audits and attacks share.

    Attributes:
        checkpoint: as it was handed in.
        samples: all of them.
        settings: of the audit.
        loss: by name or function.
        release: of a copy of the model in the dtype and on the device to work in; without noise if undefended.
        chosen: the attacker's prior.
        device: where the work is done.
    """

    checkpoint: Checkpoint
    samples: Samples
    settings: AuditSettings
    loss: Loss
    release: Release
    chosen: ChosenPrior
    device: torch.device

    def batch(self, indices: list[int]) -> Batch:
        """Some samples, where and as the release works."""
        return Batch(
            self.samples.inputs[indices].to(device=self.release.device, dtype=self.release.dtype),
            self.samples.targets[indices].to(self.release.device),
        )

    def jacobian(self, release: Release) -> JacobianMaker:
        """Makes J of a release of this model, tried on the first samples."""
        return jacobian_maker(release, self.batch(list(range(min(len(self.samples), TRIED_SAMPLES)))))


def make_victim(checkpoint: Checkpoint | nn.Module, samples: Samples, settings: AuditSettings) -> Victim:
    """Check model, data and options against each other.

    Raises:
        RiskauditError: they don't fit; the message says what to change.
    """
    if isinstance(checkpoint, nn.Module):
        checkpoint = Checkpoint.from_model(checkpoint)
    loss = load_loss(settings.loss)
    check_compatibility(checkpoint, samples, loss)
    device = settings.torch_device()
    model = copy.deepcopy(checkpoint.model).to(device=device, dtype=settings.torch_dtype())
    release = Release(model, loss, settings.release)
    chosen = choose_prior(settings, samples)
    refuse_coupling(model, samples, settings)
    return Victim(checkpoint, samples, settings, loss, release, chosen, device)
