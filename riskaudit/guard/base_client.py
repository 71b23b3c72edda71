"""What a guard asks of a client's release, whether its samples have a part of their own in it or leave together."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeAlias

import torch
from scipy.stats import chi2
from torch import Tensor, nn

from riskaudit.audit.alarm import is_cross_entropy, loss_alarm
from riskaudit.errors import GuardError, SettingsError
from riskaudit.guard.noise.law import noise_mismatch
from riskaudit.guard.noise.traces import REJECTION
from riskaudit.guard.snapshot import Snapshot, take_snapshot
from riskaudit.inputs import Loss, load_loss
from riskaudit.release import Batch, Noise, Release, ReleaseSpec
from riskaudit.release.steps.share import Share

LossLike: TypeAlias = str | nn.Module | Callable[[Tensor, Tensor], Tensor]
# How far an update without noise may be from what it should be, relative to its norm: other kernels, other sums.
TOLERANCE = 1e-3


class BaseClient(ABC):
    """The release of one client's batches.

    Args:
        model: the live model; never changed.
        loss: by name, module or function of outputs and targets.
        spec: what is done to a batch, and noise.
        dtype: to work in.

    Attributes:
        loss: a copy of the loss, as it was taken over last.
        noise: law of the noise on every entry of the update; None without.
        summed: whether an upload holds every sample's part as it is, not divided by their number.

    Raises:
        SettingsError: no module.
    """

    is_joint: ClassVar[bool]
    """Whether the update is one function of all samples, in which none has a part of its own."""

    def __init__(self, model: nn.Module, loss: LossLike | Loss, spec: ReleaseSpec, dtype: torch.dtype) -> None:
        if not isinstance(model, nn.Module):
            raise SettingsError(
                f"expected model to be a torch.nn.Module, found a {type(model).__name__}; wrap it in one"
            )
        self._model, self._live_loss, self._spec, self._dtype = model, as_loss(loss), spec, dtype
        self.loss = self._live_loss
        self.noise: Noise | None = spec.noise
        self.summed = False

    @property
    def noise_std(self) -> float:
        """Fisher-equivalent std of the noise on every entry of the update; 0 without."""
        return 0.0 if self.noise is None else self.noise.fisher_std

    @property
    def spec(self) -> ReleaseSpec:
        """What is done to a batch, and noise."""
        return self._spec

    @property
    def live_loss(self) -> Loss:
        """The loss itself, as the training uses it."""
        return self._live_loss

    @property
    def is_recorded(self) -> bool:
        """Whether what is reviewed is a training that is over, not a step from the live model's weights."""
        return False

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, torch.Size]:
        """Of the trainable parameters, by name."""

    @property
    @abstractmethod
    def reviewed_model(self) -> nn.Module:
        """The copy of the model, with the weights that were taken over last."""

    @property
    @abstractmethod
    def state(self) -> bytes:
        """Digest of model, loss and release as they were taken over last, and the steps."""

    @abstractmethod
    def refresh(self) -> Snapshot:
        """Take over the weights, buffers, modes and settings that are reviewed, and the loss with whatever it holds.

        Returns:
            What was taken over; to be compared with what is there when the review is done.

        Raises:
            GuardError: a weight that isn't finite, or state that can't be compared.
            ReleaseError: a model that has no such release.
        """

    @abstractmethod
    def forget(self) -> None:
        """Let go of copies that may be in any state, and of what was made of them."""

    def observe(self, copies: dict[int, Tensor] | None = None) -> Snapshot:
        """The state of the live model and loss; see `take_snapshot`."""
        return take_snapshot(copies, model=self._model, loss=self._live_loss.function)

    @abstractmethod
    def batch(self, inputs: Tensor, targets: Tensor) -> Batch:
        """Samples where and as the release works."""

    @abstractmethod
    def prepare(self, batch: Batch) -> None:
        """Do on a few samples what a first review would do only once.

        Raises:
            RiskauditError: the model or the batch can't be reviewed.
        """

    @abstractmethod
    def mean(self, batch: Batch) -> Tensor:
        """What leaves before noise, [P], float64 on the CPU.

        Raises:
            GuardError: the batch has no such release.
            ReleaseError: neither has the model.
        """

    @abstractmethod
    def loss_warnings(self, batch: Batch) -> list[str]:
        """What the batch's mean loss says of the model, where it is a cross-entropy of class numbers."""

    def undetected(self, mean: Tensor) -> float:
        """How large a deviation from ``mean`` [P] the comparison of an update may miss, relative to its norm.

        Noise of std s on P entries hides what changes the sum of P squares by less than its spread.
        """
        length = float(mean.norm())
        if self.noise is None:
            return TOLERANCE
        law = chi2(len(mean))
        hidden = self.noise.std * math.sqrt(float(law.isf(REJECTION) - law.ppf(REJECTION)))
        return hidden / length if length > 0 else math.inf

    def mismatch(self, update: Tensor, mean: Tensor) -> str | None:
        """Why an update [P] can't be the release of the batch whose mean is ``mean`` [P]; None where it can be."""
        difference = update - mean
        length = float(mean.norm())
        if not math.isfinite(length):
            return "what this batch makes isn't finite, so that nothing can be compared with it"
        if self.noise is not None:
            return noise_mismatch(self.noise, difference, mean, self.shapes)
        distance = float(difference.norm())
        if distance <= TOLERANCE * length:
            return None
        away = f"{distance / length:.3g} times its norm" if length > 0 else f"{distance:.3g} (it should be 0)"
        return self.described_mismatch(f"it is {away} away from it", update, mean)

    @abstractmethod
    def described_mismatch(self, away: str, update: Tensor, mean: Tensor) -> str:
        """A sentence about an update [P] that isn't what it should be, ``mean`` [P]."""

    def _loss_alarm(self, losses: Tensor, outputs: Tensor, batch: Batch) -> list[str]:
        if not is_cross_entropy(self.loss) or batch.targets.is_floating_point():
            return []
        return loss_alarm(losses.tolist(), outputs.shape[1] if outputs.ndim > 1 else None)


def as_loss(given: LossLike | Loss) -> Loss:
    """A loss by its name, as a module, or as a function of outputs and targets."""
    if isinstance(given, Loss):
        return given
    if isinstance(given, str):
        return load_loss(given)
    return Loss(getattr(given, "__name__", type(given).__name__), given, "custom")


def refuse_left_out(release: Release, spec: ReleaseSpec) -> None:
    """Refuse a release that doesn't send every trainable parameter.

    Raises:
        GuardError: one that leaves some out.
    """
    if release.num_entries != release.context.num_entries:
        left_out = ", ".join(f"'{step}'" for step in spec.all_steps if isinstance(step, Share))
        raise GuardError(
            f"expected a release that sends every trainable parameter, found {left_out} in it; freeze what isn't "
            "sent, and leave it out of the release"
        )
