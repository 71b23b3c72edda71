"""The client that is audited: its model, loss, release and samples, checked against each other and made ready."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn

from riskaudit.audit.checks import refuse_coupling
from riskaudit.audit.credibility import check_code
from riskaudit.audit.precision import single_maker
from riskaudit.audit.prior import ChosenPrior, choose_prior
from riskaudit.audit.settings import AuditSettings
from riskaudit.audit.texts import refuse_for_texts
from riskaudit.audit.transformed import transformed
from riskaudit.copying import copy_model
from riskaudit.errors import ArchitectureError, SettingsError
from riskaudit.inputs import Checkpoint, Loss, Samples, fit_together, load_loss
from riskaudit.inputs.model_defenses import with_model_defense
from riskaudit.jacobian import AnyJacobianMaker, jacobian_maker, joint_jacobian_maker
from riskaudit.release import (
    Batch,
    PerSampleRelease,
    Release,
    ReleaseSpec,
    Upload,
    batch_norm_layers,
    make_release,
    with_batch_statistics,
)
from riskaudit.release.joint import JointRelease

# Samples on which the Jacobian is tried before the work begins.
TRIED_SAMPLES = 4


@final
@dataclass(frozen=True, eq=False)
class ClientDescription:
    """What a client is made from, as it was handed in; can be pickled where the model can.

    Attributes:
        checkpoint: the model.
        samples: all of them.
        settings: of the audit; they name loss, release and prior.
        norms: of what the first samples release, where the client was built before; None where it wasn't.
    """

    checkpoint: Checkpoint
    samples: Samples
    settings: AuditSettings
    norms: tuple[float, ...] | None = None

    def build(self) -> Client:
        """The client.

        Raises:
            RiskauditError: model, data and options don't fit; the message says what to change.
            SettingsError: it isn't the client that was built before.
        """
        settings = self.settings
        loss = load_loss(settings.loss)
        checkpoint = with_model_defense(self.checkpoint, settings.model_defense)
        checkpoint, samples = fit_together(checkpoint, self.samples, loss)
        model = copy_model(checkpoint.model).to(device=settings.torch_device(), dtype=settings.torch_dtype())
        spec = ReleaseSpec.parse(settings.release)
        originals, is_joint = None, spec.is_joint
        if spec.transformation is not None:
            originals, samples = samples, transformed(samples, spec.transformation)
        if is_joint and settings.batch_norm != "running":
            if settings.batch_norm is not None and not batch_norm_layers(model):
                raise SettingsError(
                    "expected a model with batch norm for `batch_norm=batch`, found none in "
                    f"{checkpoint.architecture}; leave `batch_norm` out"
                )
            model = with_batch_statistics(model)
        release = make_release(model, loss, spec)
        if not is_joint:
            refuse_coupling(model, samples, settings)
        if samples.tokens is not None:
            refuse_for_texts(spec, samples)
        prior = choose_prior(settings, samples)
        first = release.uploads(len(samples))[: 1 if is_joint else TRIED_SAMPLES]
        maker = _tried_maker(release, _batch_of(samples, first, release))
        single = None
        if settings.chosen_dtype(release.device) == "mixed":
            single = single_maker(maker, _batch_of(samples, first, release))
        client = Client(checkpoint, samples, settings, loss, release, prior, maker, self, originals, single)
        # What a class makes of itself when it is pickled need not be what it was.
        if self.norms is not None and not _agree(client.norms(), self.norms, release.dtype):
            raise SettingsError("expected the gradients that the model has here, found others after pickling")
        return client

    def devices(self) -> Sequence[int]:
        """Every CUDA device, where the settings leave the choice."""
        device = self.settings.torch_device()
        return range(torch.cuda.device_count()) if device.type == "cuda" and device.index is None else ()


@final
@dataclass(frozen=True, eq=False)
class Client:
    """What audits and attacks share.

    Attributes:
        checkpoint: as it fits samples and loss.
        samples: all of them, as the client trains on them.
        settings: of the audit, which name the release before `at_noise`.
        loss: by name or function.
        release: of a copy of the model in the dtype and on the device to work in; without noise if undefended.
        chosen: the attacker's prior.
        maker: makes the Jacobian, tried on the first samples; the same for every noise.
        source: what the client was made from.
        originals: the samples before they were transformed; None where they aren't.
        single: makes the Jacobian in single precision, of the settings' own release; None where that isn't wanted, or
            the model can't be run in it.
    """

    checkpoint: Checkpoint
    samples: Samples
    settings: AuditSettings
    loss: Loss
    release: Release
    chosen: ChosenPrior
    maker: AnyJacobianMaker
    source: ClientDescription
    originals: Samples | None = None
    single: AnyJacobianMaker | None = None

    @cached_property
    def description(self) -> ClientDescription:
        """What another process can make the same client from; it notices where it made another one."""
        return replace(self.source, norms=self.norms())

    def norms(self) -> tuple[float, ...]:
        """2-norms of what the first samples release, before noise."""
        count = 1 if self.is_joint else TRIED_SAMPLES
        batch = self.upload_batch(list(range(min(len(self.uploads), count))))
        return tuple(self.release.mean(batch).detach().norm(dim=1).tolist())

    @property
    def sample_bytes(self) -> int:
        """Memory that one more upload in a batch takes, about."""
        own = self.maker.sample_bytes
        return own if self.single is None else own + own // 2

    @property
    def device(self) -> torch.device:
        """Where the work is done."""
        return self.release.device

    @property
    def is_joint(self) -> bool:
        """Whether several samples leave together."""
        return self.release.coupling == "joint"

    @property
    def mixes_samples(self) -> bool:
        """Whether batch norm takes the statistics of the batch."""
        return isinstance(self.release, JointRelease) and self.release.mixes_samples

    @cached_property
    def uploads(self) -> Sequence[Upload]:
        """Which samples leave together, in their order."""
        return self.release.uploads(len(self.samples))

    @property
    def upload_size(self) -> int:
        """Samples of an upload."""
        return len(self.uploads[0])

    def batch(self, indices: list[int]) -> Batch:
        """Some samples, each by itself, where and as the release works."""
        return _batch_of(self.samples, [Upload((index,)) for index in indices], self.release)

    def original_inputs(self, indices: list[int]) -> Tensor | None:
        """Inputs of some samples before they were transformed, [B, *S]; None where they aren't."""
        if self.originals is None:
            return None
        return self.originals.inputs[indices].to(device=self.release.device, dtype=self.release.dtype)

    def upload_batch(self, numbers: list[int]) -> Batch:
        """Some uploads, likewise."""
        return _batch_of(self.samples, [self.uploads[number] for number in numbers], self.release)

    @property
    def noisy(self) -> Release:
        """The release with its noise, or with the reference noise where it has none."""
        return (
            self.release if self.release.noise is not None else self.release.with_noise(self.settings.reference_noise)
        )

    @property
    def target_rmse(self) -> float:
        """Error that the noise recommended for a sample should reach: half the prior's std unless named."""
        return self.chosen.info.std / 2 if self.settings.target_rmse is None else self.settings.target_rmse

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Least and greatest value of an input coordinate: pixels in [0, 1]; unknown for other data."""
        inputs = self.samples.inputs
        within = bool((inputs >= 0).all() and (inputs <= 1).all())
        return (0.0, 1.0) if self.samples.are_images and within else None

    def at_noise(self, std: float | None) -> Client:
        """The same client with Gaussian noise of this std on its release, none for 0, its own for None."""
        if std is None:
            return self
        release = self.release.with_noise(std) if std > 0 else self.release.without_noise()
        return replace(self, release=release)

    def with_samples(self, samples: Samples) -> Client:
        """The same client on other samples, taken as it trains on them."""
        return replace(self, samples=samples, originals=None)

    def jacobian(self, release: Release) -> AnyJacobianMaker:
        """Makes J of a release of this model, of the same coupling."""
        return self.maker.of(release)


def make_client(checkpoint: Checkpoint | nn.Module, samples: Samples, settings: AuditSettings) -> Client:
    """Check model, data and options against each other.

    Raises:
        RiskauditError: they don't fit; the message says what to change.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.from_model(checkpoint)
    return ClientDescription(checkpoint, samples, settings).build()


def _agree(norms: Sequence[float], expected: Sequence[float], dtype: torch.dtype) -> bool:
    """Whether they are equal but for rounding; what isn't finite agrees with itself."""
    tolerance = torch.finfo(dtype).eps ** 0.5
    given, other = torch.tensor(norms, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
    return torch.allclose(given, other, rtol=tolerance, atol=0, equal_nan=True)


def _batch_of(samples: Samples, uploads: Sequence[Upload], release: Release) -> Batch:
    positions = [position for upload in uploads for position in upload.positions]
    chosen = samples.select(positions)
    inputs, targets, lengths = chosen.inputs, chosen.targets, None
    if chosen.tokens is not None:
        # Texts at the length of the longest of them, which alone decides what the model computes.
        lengths = chosen.tokens.lengths
        longest = int(lengths.max()) if len(lengths) else 0
        inputs = inputs[:, :longest]
        targets = targets[:, :longest] if targets.ndim == 2 and targets.shape[1] == chosen.inputs.shape[1] else targets
        lengths = lengths.to(release.device)
    return Batch(
        inputs.to(device=release.device, dtype=release.dtype),
        targets.to(release.device),
        len(uploads[0]) if uploads else 1,
        tuple(upload.number for upload in uploads),
        lengths=lengths,
    )


def _tried_maker(release: Release, first: Batch) -> AnyJacobianMaker:
    """Makes J of a release, tried on the first samples.

    Raises:
        ArchitectureError: the model's code hides the input from the derivative, or has none.
    """
    if isinstance(release, JointRelease):
        return joint_jacobian_maker(release, first)
    assert isinstance(release, PerSampleRelease)
    maker = jacobian_maker(release, first)
    # In double precision every sample's own row says so.
    doubt = None if release.dtype == torch.float64 else check_code(maker, first)
    if doubt is not None:
        raise ArchitectureError(doubt)
    return maker
