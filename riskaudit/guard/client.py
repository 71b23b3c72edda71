"""A client's release of its batches (`riskaudit.guard.batch_mean`), kept up to date with a model that trains."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.audit.credibility import check_code
from riskaudit.copying import copy_model
from riskaudit.errors import CoupledReleaseError, GuardError
from riskaudit.guard.base_client import BaseClient, LossLike, refuse_left_out
from riskaudit.guard.batch_mean import BatchMean, BatchPass, batch_mean_spec
from riskaudit.guard.snapshot import Snapshot
from riskaudit.inputs import Loss
from riskaudit.jacobian import Jacobian, JacobianMaker, jacobian_maker
from riskaudit.jacobian.choice import is_repeatable, losses_alone
from riskaudit.jacobian.obstacles import AUTOCAST, NOT_DETERMINISTIC, uses_autocast
from riskaudit.jacobian.structured.operator import agree
from riskaudit.release import Batch, Release, ReleaseSpec
from riskaudit.release.steps.clip import Clip

# Of the Jacobian's release where the client adds no noise; nothing is read off at it.
ARBITRARY_NOISE_STD = 1.0
# An update with more zeros than this share of its entries, where the gradient has none, was made sparse.
SPARSE_SHARE = 0.01
# Samples on which the Jacobian is tried before the first review.
TRIED_SAMPLES = 4
COUPLED = (
    "the loss of a sample depends on the other samples of its batch, so a batch's gradient isn't made of its samples'; "
    "train without operations over the whole batch"
)


@final
class Client(BaseClient):
    """The release of one client's batches.

    Args:
        model: the live model; never changed.
        loss: by name, module or function of outputs and targets.
        release: steps that act on every sample by itself, and noise on the mean.
        dtype: to work in.
        summed: the update is the sum over the batch, not the mean.
        any_layer: differentiate models with a layer that the structured Jacobian doesn't know as a whole.

    Raises:
        SettingsError: no module.
        ReleaseError: see `batch_mean_spec`.
        RiskauditError: see `Release` and `load_loss`.
    """

    is_joint = False

    def __init__(
        self,
        model: nn.Module,
        loss: LossLike | Loss,
        release: ReleaseSpec | str,
        dtype: torch.dtype,
        summed: bool = False,
        any_layer: bool = False,
    ) -> None:
        super().__init__(model, loss, batch_mean_spec(release), dtype)
        self.summed, self.any_layer = summed, any_layer
        self._snapshot: Snapshot | None = None
        self._makers: dict[object, JacobianMaker] = {}
        self._copy: nn.Module | None = None
        self._exact: Client | None = None
        self._release: BatchMean | None = None
        # The batch that the model was run on last, and what came of it.
        self._last_pass: tuple[Batch, BatchPass] | None = None

    @property
    @override
    def shapes(self) -> Mapping[str, torch.Size]:
        return self.release.per_sample.context.shapes

    @property
    @override
    def reviewed_model(self) -> nn.Module:
        return self.release.per_sample.model

    @property
    @override
    def state(self) -> bytes:
        return b"" if self._snapshot is None else self._snapshot.digest + str(self._spec.with_noise(None)).encode()

    @override
    def refresh(self) -> Snapshot:
        # What is audited is what was digested, even if somebody changes the live weights in between.
        copies: dict[int, Tensor] = {}
        now, before = self.observe(copies), self._snapshot
        if self._copy is None or before is None or now.rest != before.rest:
            self._copy = copy_model(self._model).to(dtype=self._dtype)
            function = copy_model(self._live_loss.function, "loss")
            function = function.to(dtype=self._dtype) if isinstance(function, nn.Module) else function
            self.loss = replace(self._live_loss, function=function)
            self._makers.clear()
        with torch.no_grad():
            pairs = zip(self._copy.parameters(), self._model.parameters(), strict=True)
            for copied, live in (*pairs, *zip(self._copy.buffers(), self._model.buffers(), strict=True)):
                copied.copy_(copies.get(id(live), live))
        self._snapshot = now
        for name, value in self._copy.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise GuardError(f"the model's {name} holds something that isn't a finite number")
        self._last_pass = None
        # Its parameters share memory with the copy's, so that later calls keep what is made of it.
        release = BatchMean(self._copy, self.loss, self._spec, "sum" if self.summed else "mean")
        refuse_left_out(release.per_sample, self._spec)
        self._release = release
        return now

    @override
    def forget(self) -> None:
        self._copy = self._release = self._last_pass = self._exact = None
        self._makers.clear()

    @override
    def batch(self, inputs: Tensor, targets: Tensor) -> Batch:
        release = self.release.per_sample
        return Batch(inputs.detach().to(release.device, release.dtype), targets.detach().to(release.device))

    def clipped(self, norm: float) -> Client:
        """The same client with every sample's release clipped to ``norm``, once its samples' steps are done."""
        return self._followed_by(self._like(ReleaseSpec((*self._spec.steps, Clip(norm)), self.noise), self._dtype))

    def exact(self) -> Client:
        """The same client in float64.

        Raises:
            GuardError: the live model has changed meanwhile.
        """
        if self._exact is None:
            self._exact = self._like(self._spec, torch.float64)
        return self._followed_by(self._exact)

    def jacobian(self, batch: Batch, noise_std: float) -> Jacobian:
        """J of every sample's own release with Gaussian noise of this std.

        Raises:
            GuardError: see `jacobian_maker`, or samples that depend on each other.
        """
        release = self.release.per_sample.with_noise(noise_std or ARBITRARY_NOISE_STD)
        jacobian = replace(self.jacobian_maker(batch), release=release)(batch)
        if jacobian.separate:
            raise GuardError(_coupling(self.release.per_sample, batch))
        return jacobian

    def jacobian_maker(self, batch: Batch) -> JacobianMaker:
        """Makes J of every sample's own release without noise.

        Raises:
            GuardError: a layer that the structured Jacobian doesn't know, or code that hides the input.
        """
        release = self.release.per_sample
        key = (batch.inputs.shape[1:], batch.targets.shape[1:], batch.targets.dtype)
        maker = self._makers.get(key)
        if maker is None:
            # Drawn, so that no place in a batch is known to be looked at.
            tried = batch.select(secrets.SystemRandom().sample(range(len(batch)), min(len(batch), TRIED_SAMPLES)))
            maker = jacobian_maker(release, tried, wordless=True)
            if maker.layout is None and not self.any_layer:
                # Not kept: it may be this batch that can't be run, and the next one can.
                if uses_autocast(release, tried):
                    raise GuardError(AUTOCAST)
                freeze = "freeze it, or " if maker.reason.startswith("the layer ") else ""
                raise GuardError(f'{maker.reason}; {freeze}set unknown_layers = "differentiate" in the policy')
            doubt = check_code(maker, tried)
            if doubt is not None:
                raise GuardError(doubt)
            self._makers[key] = maker
        return replace(maker, release=release)

    def sample_bytes(self, batch: Batch) -> int:
        """Bytes that one more sample in a batch takes, about."""
        if not self._makers:
            self.jacobian(batch.select([0]), ARBITRARY_NOISE_STD)
        return max(maker.sample_bytes for maker in self._makers.values())

    @override
    def prepare(self, batch: Batch) -> None:
        self.sample_bytes(batch)

    @override
    def mean(self, batch: Batch) -> Tensor:
        # The gradient of the batch's loss as training computes it; where samples are clipped, and of a sum, the mean
        # (sum) of every sample's own.
        release, passed = self.release, self.release.evaluate(batch, with_gradient=True)
        self._last_pass = batch, replace(passed, gradient=None)
        if len(batch) > 1 and not agree(passed.losses, losses_alone(release.per_sample, batch)):
            raise GuardError(_coupling(release.per_sample, batch))
        if release.per_sample.changes_gradient:
            return release.accumulated_mean(batch)
        assert passed.gradient is not None
        return passed.gradient

    def shares(self, batch: Batch) -> list[float] | None:
        """What part of the update each sample's own gradient has; see `BatchMean.shares`.

        Raises:
            GuardError: the model computes in another precision than it is given.
            ReleaseError: no sample's part is known, or some sample has none.
        """
        try:
            return self.release.shares(self._passed(batch).outputs, batch.targets)
        except CoupledReleaseError as error:
            if uses_autocast(self.release.per_sample, batch):
                raise GuardError(AUTOCAST) from error
            raise

    @override
    def loss_warnings(self, batch: Batch) -> list[str]:
        passed = self._passed(batch)
        return self._loss_alarm(passed.losses, passed.outputs, batch)

    @override
    def described_mismatch(self, away: str, update: Tensor, mean: Tensor) -> str:
        return (
            f"the update isn't the gradient of this batch: {away}; hand over the mean gradient over the batch, of the "
            f"loss that the guard was given{_sparsified(update, mean)}"
        )

    def _like(self, spec: ReleaseSpec, dtype: torch.dtype) -> Client:
        return Client(self._model, self._live_loss, spec, dtype, self.summed, self.any_layer)

    def _followed_by(self, other: Client) -> Client:
        """Another client of the same live model, with what this one has taken over."""
        now = other.refresh()
        if self._snapshot is not None:
            self._snapshot.refuse_change(now)
        return other

    @property
    def release(self) -> BatchMean:
        """What leaves of a batch, with the weights that were taken over last."""
        if self._release is None:
            self.refresh()
        assert self._release is not None
        return self._release

    def _passed(self, batch: Batch) -> BatchPass:
        """The model's pass over a batch, the one that was made for it last if any."""
        if self._last_pass is None or self._last_pass[0] is not batch:
            self._last_pass = batch, self.release.evaluate(batch, with_gradient=False)
        return self._last_pass[1]


def _coupling(release: Release, batch: Batch) -> str:
    """Why a sample has another loss in its batch than alone."""
    if not is_repeatable(release, batch):
        return NOT_DETERMINISTIC
    return AUTOCAST if uses_autocast(release, batch) else COUPLED


def _sparsified(update: Tensor, mean: Tensor) -> str:
    """What to do where entries of an update [P] were set to 0."""
    zeros = int(((update == 0) & (mean != 0)).sum())
    if zeros <= SPARSE_SHARE * len(mean):
        return ""
    return (
        f"; {zeros} of {len(mean)} entries are 0 where the gradient isn't: which entries are largest depends on all "
        "samples, so send all, or a choice that is made beforehand (mask:RATIO in the release)"
    )
