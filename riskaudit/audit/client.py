"""The client that is audited: its model, loss, release and samples, checked against each other and made ready."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from riskaudit.audit.checks import refuse_coupling
from riskaudit.audit.credibility import check_code
from riskaudit.audit.prior import ChosenPrior, choose_prior
from riskaudit.audit.settings import AuditSettings
from riskaudit.copying import copy_model
from riskaudit.errors import ArchitectureError
from riskaudit.inputs import Checkpoint, Loss, Samples, fit_together, load_loss
from riskaudit.jacobian import JacobianMaker, jacobian_maker
from riskaudit.release import Batch, PerSampleRelease

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
        tried: the Jacobian's maker, once it was tried on this model; the same for every noise.
    """

    checkpoint: Checkpoint
    samples: Samples
    settings: AuditSettings
    loss: Loss
    release: PerSampleRelease
    chosen: ChosenPrior
    device: torch.device
    tried: list[JacobianMaker] = field(default_factory=list)

    def batch(self, indices: list[int]) -> Batch:
        """Some samples, where and as the release works."""
        return Batch(
            self.samples.inputs[indices].to(device=self.release.device, dtype=self.release.dtype),
            self.samples.targets[indices].to(self.release.device),
        )

    @property
    def noisy(self) -> PerSampleRelease:
        """The release with its noise, or with the reference noise where it has none."""
        return (
            self.release if self.release.noise is not None else self.release.with_noise(self.settings.reference_noise)
        )

    def at(self, release: PerSampleRelease) -> Victim:
        """The same client with another noise on its release."""
        return replace(self, release=release, settings=replace(self.settings, release=str(release.spec)))

    def jacobian(self, release: PerSampleRelease) -> JacobianMaker:
        """Makes J of a release of this model, tried on the first samples.

        Raises:
            ArchitectureError: the model's code hides the input from the derivative, or has none.
        """
        if not self.tried:
            first = self.batch(list(range(min(len(self.samples), TRIED_SAMPLES))))
            maker = jacobian_maker(release, first)
            # In double precision every sample's own row says so.
            doubt = None if release.dtype == torch.float64 else check_code(maker, first)
            if doubt is not None:
                raise ArchitectureError(doubt)
            self.tried.append(maker)
        return replace(self.tried[0], release=release)


def make_victim(checkpoint: Checkpoint | nn.Module, samples: Samples, settings: AuditSettings) -> Victim:
    """Check model, data and options against each other.

    Raises:
        RiskauditError: they don't fit; the message says what to change.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.from_model(checkpoint)
    loss = load_loss(settings.loss)
    checkpoint, samples = fit_together(checkpoint, samples, loss)
    device = settings.torch_device()
    model = copy_model(checkpoint.model).to(device=device, dtype=settings.torch_dtype())
    release = PerSampleRelease(model, loss, settings.release)
    chosen = choose_prior(settings, samples)
    refuse_coupling(model, samples, settings)
    return Victim(checkpoint, samples, settings, loss, release, chosen, device)
