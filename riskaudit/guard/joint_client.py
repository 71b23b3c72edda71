"""A client whose samples leave together: after local training, or in a mean whose layers mix them.

No sample has a part of its own in such an update, so that it is differentiated as one function of all of them, and
every sample is told what it reveals to who knows the others (`riskaudit.sensitivity.pulled`).
"""

from __future__ import annotations

import copy
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.audit.uploads import check_upload_code
from riskaudit.copying import copy_model
from riskaudit.errors import GuardError, RiskauditError
from riskaudit.guard.base_client import BaseClient, LossLike, refuse_left_out
from riskaudit.guard.isolation import isolated
from riskaudit.guard.snapshot import Snapshot
from riskaudit.inputs import Loss
from riskaudit.jacobian import Jacobian, JointJacobianMaker, joint_jacobian_maker
from riskaudit.jacobian.joint import TOGETHER
from riskaudit.jacobian.unrolled import UnrolledJacobian
from riskaudit.release import Batch, ReleaseSpec, make_release
from riskaudit.release.joint import JointRelease
from riskaudit.release.local_training import LocalTrainingRelease
from riskaudit.release.shares import sample_losses
from riskaudit.release.steps import applied
from riskaudit.release.training import LocalTraining

NOT_EXPLAINED = (
    "whatever else changed the weights (clipped gradients, dropout, another loss or optimizer, steps that weren't "
    "recorded, mixed precision) isn't reviewed, so train without it"
)


# Some samples are looked at in double precision once for about so many steps of training.
STEPS_PER_CHECK, MOST_CHECKED = 256, 4
# Models whose code was tried in double precision, by digests of all but their weights.
_tried: set[bytes] = set()
# The same of models all of whose layers the structured Jacobian knows.
_known: set[bytes] = set()


@dataclass(frozen=True, eq=False)
class Origin:
    """A model before it was trained.

    Attributes:
        model: a copy.
        snapshot: of what was copied.
    """

    model: nn.Module
    snapshot: Snapshot


@final
class JointClient(BaseClient):
    """One upload per batch, or per round of local training.

    Args:
        model: the live model; never changed.
        loss: by name, module or function of outputs and targets.
        spec: local training and steps on the difference of the weights, or steps on the mean gradient; and noise.
        dtype: to work in.
        any_layer: whether a layer that the structured Jacobian doesn't know is no obstacle.

    Attributes:
        pulled: J^T u of every sample for the standard normal u that were drawn since `refresh`, [n, d, k].

    Raises:
        GuardError: a description of something that one client doesn't send by itself, or that is drawn anew each time.
    """

    is_joint = True

    def __init__(
        self, model: nn.Module, loss: LossLike | Loss, spec: ReleaseSpec, dtype: torch.dtype, any_layer: bool = True
    ) -> None:
        super().__init__(model, loss, spec, dtype)
        _refuse(spec)
        self.any_layer = any_layer
        # What is known of each sample is of the upload as it leaves.
        self.summed = True
        self._origin: Origin | None = None
        self._modes: Mapping[str, bool] | None = None
        self._snapshot: Snapshot | None = None
        self._release: JointRelease | None = None
        self._jacobian: tuple[Batch, Jacobian] | None = None
        self._losses: tuple[Batch, Tensor] | None = None
        self.pulled: Tensor | None = None

    def begin(self) -> None:
        """Remember the live model as it is, so that a training that is about to change it can be reviewed after it."""
        self._origin = Origin(*self._copied())

    def end(self, training: LocalTraining, modes: Mapping[str, bool]) -> None:
        """Tell how the model was trained since `begin`.

        Args:
            training: as recorded.
            modes: whether each module, by name, was in train mode while it was.
        """
        self._spec, self._modes = replace(self._spec, training=training), modes

    @isolated
    def require(self, modes: Mapping[str, bool], samples: tuple[Tensor, Tensor] | None = None) -> None:
        """Refuse a model or a release that no training could be reviewed with, before there is any.

        Args:
            modes: whether each module, by name, is in train mode.
            samples: inputs [B, *S] and targets [B, ...] of a first mini-batch, on which the layers are looked at.

        Raises:
            RiskauditError: why not.
        """
        before, self._modes = self._modes, modes
        try:
            self.refresh()
            if samples is not None and not self.any_layer:
                self._check_layers(self.upload(self.batch(*(each[:MOST_CHECKED] for each in samples))))
        finally:
            self._modes = before
            self.forget()

    @property
    @override
    def is_recorded(self) -> bool:
        return self._origin is not None

    @property
    @override
    def shapes(self) -> Mapping[str, torch.Size]:
        return self.release.context.shapes

    @property
    @override
    def reviewed_model(self) -> nn.Module:
        return self.release.model

    @property
    @override
    def state(self) -> bytes:
        return b"" if self._snapshot is None else self._snapshot.digest + str(self._spec.with_noise(None)).encode()

    @property
    def code(self) -> bytes:
        """Digest of the model and loss but for weights, and of the steps."""
        return hashlib.sha256(str(self._spec.with_noise(None)).encode() + self._layers).digest()

    @property
    def _layers(self) -> bytes:
        """Digest of the model and loss but for weights, with the modes that they are reviewed in."""
        digest = hashlib.sha256()
        for path, leaf in {} if self._snapshot is None else self._snapshot.rest.items():
            digest.update(path.encode() + b"\0" + leaf)
        for name, is_trained in (self._modes or {}).items():
            digest.update(f"{name}\0{is_trained}".encode())
        return digest.digest()

    def _check_layers(self, part: Batch) -> None:
        """Whether the structured Jacobian knows all layers, looked at once for each model in this process.

        Raises:
            GuardError: it doesn't.
        """
        if self._layers in _known:
            return
        release = make_release(self.release.model, self.loss, "mean:all")
        assert isinstance(release, JointRelease)
        maker = joint_jacobian_maker(release, part)
        if maker.layout is None:
            reason = maker.reason.removeprefix(f"{TOGETHER}, and ").removesuffix(": the whole upload is differentiated")
            freeze = "freeze it, or " if reason.startswith("the layer ") else ""
            raise GuardError(f'{reason}; {freeze}set unknown_layers = "differentiate" in the policy')
        _known.add(self._layers)

    @override
    def refresh(self) -> Snapshot:
        model, snapshot = self._copied() if self._origin is None else (self._origin.model, self._origin.snapshot)
        if self._origin is not None:
            model = copy.deepcopy(model)
        for name, module in model.named_modules():
            if self._modes is not None:
                module.training = self._modes.get(name, module.training)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                # As training computes; what it does to the running statistics is no part of the update.
                module.running_mean = module.running_var = module.num_batches_tracked = None
                module.track_running_stats = module.training = False
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise GuardError(f"the model's {name} holds something that isn't a finite number")
        release = make_release(model, self.loss, self._spec)
        assert isinstance(release, JointRelease)
        refuse_left_out(release, self._spec)
        self._snapshot, self._release = snapshot, release
        self._jacobian = self._losses = self.pulled = None
        return snapshot

    @override
    def forget(self) -> None:
        self._release = self._jacobian = self._losses = self.pulled = None

    @override
    def batch(self, inputs: Tensor, targets: Tensor) -> Batch:
        release = self.release
        return Batch(inputs.detach().to(release.device, release.dtype), targets.detach().to(release.device))

    @override
    def prepare(self, batch: Batch) -> None:
        self.check_code(batch)
        self.mean(batch)

    def check_code(self, batch: Batch) -> None:
        """Whether the model's layers are known, and the derivative of its code is one, on some of a batch's samples.

        That takes many trainings: before the first review of a model in this process, and the derivative then now and
        again, in double precision.

        Raises:
            GuardError: they aren't and the policy asks for it, or it isn't.
        """
        training = self.spec.training
        steps = [list(range(len(batch)))] if training is None else training.mini_batches(len(batch))
        layers_count = not self.any_layer and self._layers not in _known
        if not layers_count and self.code in _tried and secrets.randbelow(STEPS_PER_CHECK) >= len(steps):
            return
        drawn = sorted(set(secrets.choice(steps)))
        positions = sorted(secrets.SystemRandom().sample(drawn, min(len(drawn), MOST_CHECKED)))
        part = Batch(batch.inputs[positions], batch.targets[positions], len(positions))
        if layers_count:
            self._check_layers(part)
        release = make_release(self.release.model, self.loss, "mean:all")
        assert isinstance(release, JointRelease)
        doubt = check_upload_code(release, part)
        if doubt is not None:
            raise GuardError(doubt)
        _tried.add(self.code)

    @override
    def mean(self, batch: Batch) -> Tensor:
        mean: Tensor = self.jacobian(batch).mean()[0].detach().double().cpu()
        if self._spec.training is not None and not bool(torch.isfinite(mean).all()):
            raise GuardError(self._spec.training.diverged)
        return mean

    @override
    def loss_warnings(self, batch: Batch) -> list[str]:
        release = self.release
        try:
            with torch.no_grad():
                outputs, added = release.function.run_with_added(release.parameters, batch.inputs)
                losses = sample_losses(self.loss, outputs, batch.targets, added)
        except RiskauditError:
            # A loss of the batch as a whole, which no sample has alone.
            return []
        self._losses = batch, losses
        return self._loss_alarm(losses, outputs, batch)

    def losses(self, batch: Batch) -> Tensor:
        """Of every sample, before any step, [n]; those that the warnings were read off where they are there."""
        if self._losses is not None and self._losses[0] is batch:
            return self._losses[1]
        return self.jacobian(batch).losses()

    @override
    def described_mismatch(self, away: str, update: Tensor, mean: Tensor) -> str:
        if self._spec.training is None:
            return (
                f"the update isn't the gradient of this batch: {away}; hand over the mean gradient over the batch, of "
                "the loss that the guard was given"
            )
        return f"the update isn't what this training makes of its samples: {away}; {NOT_EXPLAINED}"

    @property
    def release(self) -> JointRelease:
        """What leaves, with the weights that were taken over last."""
        if self._release is None:
            self.refresh()
        assert self._release is not None
        return self._release

    def jacobian(self, batch: Batch, noise_std: float | None = None) -> Jacobian:
        """J of the upload of a batch as a whole, [1, P, n d]; made once for each batch.

        Args:
            batch: its samples.
            noise_std: of Gaussian noise that takes the place of the release's own, where it is given.

        Raises:
            ArchitectureError: the release can't be differentiated, or is random.
            ReleaseError: a batch that makes no upload.
        """
        if noise_std is not None:
            return _jacobian(self.release.with_noise(noise_std), self.upload(batch))
        if self._jacobian is None or self._jacobian[0] is not batch:
            self._jacobian = batch, _jacobian(self.release, self.upload(batch))
        return self._jacobian[1]

    def mean_of(self, upload: Batch) -> Tensor:
        """What an upload of other samples would be before noise, [1, P]."""
        release = self.release
        return (
            UnrolledJacobian(release, upload).mean()
            if isinstance(release, LocalTrainingRelease)
            else release.mean(upload)
        ).detach()

    def before_noise(self, difference: Tensor) -> Tensor:
        """What the steps of the release make of a difference of the weights [P], which has no noise yet; [P]."""
        release = self.release
        return applied(release.stages(0).client, difference.to(release.device, release.dtype))

    def upload(self, batch: Batch) -> Batch:
        """All samples of a batch as one upload."""
        return Batch(batch.inputs, batch.targets, len(batch))

    def _copied(self) -> tuple[nn.Module, Snapshot]:
        """The live model, as it was digested, even if somebody changes the live weights in between."""
        copies: dict[int, Tensor] = {}
        snapshot = self.observe(copies)
        model = copy_model(self._model).to(dtype=self._dtype)
        function = copy_model(self._live_loss.function, "loss")
        function = function.to(dtype=self._dtype) if isinstance(function, nn.Module) else function
        self.loss = replace(self._live_loss, function=function)
        with torch.no_grad():
            pairs = zip(model.parameters(), self._model.parameters(), strict=True)
            for copied, live in (*pairs, *zip(model.buffers(), self._model.buffers(), strict=True)):
                copied.copy_(copies.get(id(live), live))
        return model, snapshot


def _jacobian(release: JointRelease, upload: Batch) -> Jacobian:
    release.uploads(len(upload))
    if isinstance(release, LocalTrainingRelease):
        jacobian: Jacobian = UnrolledJacobian(release, upload, keeps_graph=True)
    else:
        jacobian = JointJacobianMaker(release, "", 0)(upload)
    try:
        jacobian.mean()
    except Exception:  # third-party code that torch.func can't run may be run plainly
        jacobian = joint_jacobian_maker(release, upload)(upload)
    return jacobian


def _refuse(spec: ReleaseSpec) -> None:
    if spec.steps_after_noise:
        raise GuardError(f"expected noise as the last step of the release, found '{spec}'; move it to the end")
    if spec.num_clients > 1:
        raise GuardError(
            f"expected what one client sends, found '{spec}'; a guard reviews its own client's upload, before "
            "secure aggregation"
        )
    drawn = next((step for step in spec.all_steps if step.redrawn), None)
    if drawn is not None:
        raise GuardError(f"'{drawn}' is drawn anew for every upload, so that nobody can compare; leave it out")
