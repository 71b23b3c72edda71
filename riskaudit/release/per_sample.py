"""The release of every sample by itself: its gradient, then the steps of the description.

A mean gradient over a batch has Jacobian J_i / B for sample i, so this is the attacker who knows the other samples'
gradients (docs/theory.md, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.func import vmap
from typing_extensions import override

from riskaudit.errors import ReleaseError
from riskaudit.release.base import Batch, Release, Upload, spec_of
from riskaudit.release.derivatives import Derivative, ReleasedChange, change_through, derivative_of
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.model import LossFunction, ModelFunction
from riskaudit.release.steps import applied, bind_steps


@final
class PerSampleRelease(Release):
    """One upload per sample: r(x) is the sample's gradient after the steps.

    Args:
        model: in eval mode; trainable parameters are those with ``requires_grad``.
        loss: ``loss(outputs [1, ...], targets [1, ...])`` to a scalar.
        description: the steps and the noise, read where they are text.

    Raises:
        ReleaseError: a text that can't be read, or a model that has no such release; see `ModelFunction`.
        CoupledReleaseError: a layer that mixes the samples of a batch.
    """

    coupling: ClassVar[Literal["per_sample", "joint"]] = "per_sample"

    def __init__(self, model: nn.Module, loss: LossFunction, description: ReleaseSpec | str = "gradient") -> None:
        super().__init__(ModelFunction(model, loss), spec_of(description))
        if self.spec.is_joint:
            raise ReleaseError(f"expected a release in which every sample leaves alone, found '{self.spec}'")
        self._before_noise, noisy = bind_steps(self.spec.sample_steps, self.context)
        self._after_noise, self.sent = bind_steps(self.spec.steps_after_noise, noisy)
        self.num_noisy, self.num_entries = noisy.num_entries, self.sent.num_entries

    @override
    def with_spec(self, spec: ReleaseSpec) -> PerSampleRelease:
        return PerSampleRelease(self.model, self.loss, spec)

    @override
    def with_model(self, model: nn.Module) -> PerSampleRelease:
        return PerSampleRelease(model, self.loss, self.spec)

    @override
    def uploads(self, num_samples: int) -> Sequence[Upload]:
        return [Upload((position,)) for position in range(num_samples)]

    @override
    def transformed_mean(self, batch: Batch) -> Tensor:
        _refuse_several(batch)
        if len(batch) == 1:
            # Without vmap the weights keep their ordinary, faster kernels.
            return self.sample_mean(batch.inputs[0], batch.targets[0]).unsqueeze(0)
        mean: Tensor = vmap(self.sample_mean)(batch.inputs, batch.targets)
        return mean

    @override
    def plain_mean(self, batch: Batch) -> Tensor:
        _refuse_several(batch)
        gradients = [self.function.plain_gradient(inputs, target) for inputs, target in batch.pairs()]
        return torch.stack([self._stepped(row, inputs) for row, inputs in zip(gradients, batch.inputs, strict=True)])

    @override
    def after_noise(self, noise: Tensor) -> Tensor:
        return applied(self._after_noise, noise)

    def sample_mean(self, inputs: Tensor, target: Tensor) -> Tensor:
        """r(x) of one sample, [P], differentiable in the inputs [*S]; runs under torch.func transforms."""
        return self._stepped(self.function.sample_gradient(inputs, target), inputs)

    def gradient(self, batch: Batch) -> Tensor:
        """The gradient of every sample before any step, [B, P]."""
        return self.function.or_plainly(
            lambda: torch.stack([self.function.sample_gradient(*pair) for pair in batch.pairs()]),
            lambda: torch.stack([self.function.plain_gradient(*pair) for pair in batch.pairs()]),
        )

    @property
    def changes_gradient(self) -> bool:
        """Whether some step does more than adding noise."""
        return bool(self.spec.all_steps)

    def after_gradient(self, gradients: Tensor, batch: Batch) -> Tensor:
        """r(x) of a batch's samples, whose gradients [B, P] are known."""
        if not self.changes_gradient:
            return gradients
        return torch.stack([self._stepped(row, inputs) for row, inputs in zip(gradients, batch.inputs, strict=True)])

    @override
    def before_steps(self) -> PerSampleRelease:
        return self.with_spec(ReleaseSpec()) if self.changes_gradient else self

    @override
    def derivative(self, bare: Tensor, batch: Batch) -> Derivative:
        return derivative_of(bare, [*self._before_noise, *self._after_noise], batch.inputs)

    @override
    def released_change(self, bare: Tensor, change: Tensor, batch: Batch) -> ReleasedChange:
        return change_through(bare, change, [*self._before_noise, *self._after_noise], batch.inputs)

    def _stepped(self, gradient: Tensor, inputs: Tensor) -> Tensor:
        """What the steps make of the gradient [P] of a sample with these inputs [*S]."""
        return self.after_noise(applied(self._before_noise, gradient, inputs))


def _refuse_several(batch: Batch) -> None:
    """Refuse uploads of several samples.

    Raises:
        ValueError: that is what the batch holds.
    """
    if batch.upload_size != 1:
        raise ValueError(f"expected uploads of one sample, found uploads of {batch.upload_size}")
