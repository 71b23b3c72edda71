"""The update of one batch as training makes it, where every sample has a part of its own in it.

    r(x_1 ... x_n) = sum_i c_i s(g(x_i)) + noise

with c_i = 1 / n in a mean (`release.mean`), 1 in a sum, and what the loss makes of them where it weights its samples.
An attacker who knows the other samples is left with c_i s(g(x_i)): sample i is as exposed as by its own release with
noise of 1 / c_i times the std (docs/theory.md, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from riskaudit.errors import CoupledReleaseError, ReleaseError
from riskaudit.release.base import Batch, spec_of
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.model import LossFunction
from riskaudit.release.per_sample import PerSampleRelease
from riskaudit.release.shares import batch_loss, sample_losses, shares_of

# Shares of samples in a batch's loss that agree to so many digits are one.
SAME_SHARE = 1e-3
# Samples of which gradients [B, P] are held at once, in entries.
CHUNK_ENTRIES = 2**26


@dataclass(frozen=True, eq=False)
class BatchPass:
    """One pass of a model over the samples of an upload; nothing has a graph.

    Attributes:
        outputs: of the model, [B, ...].
        losses: of every sample, from its own outputs, [B].
        gradient: of the batch's loss w.r.t. the parameters, [P], float64 on the CPU; None where it wasn't asked for.
    """

    outputs: Tensor
    losses: Tensor
    gradient: Tensor | None


@final
class BatchMean:
    """The updates of batches at one state of a model.

    Args:
        model: see `ModelFunction`.
        loss: ``loss(outputs [B, ...], targets [B, ...])`` to a scalar, or to one number per sample.
        description: steps that act on every sample's gradient, and noise on the mean; read where it is text.
        reduction: "mean" or "sum" over the samples.

    Attributes:
        per_sample: every sample's own release, without noise.

    Raises:
        ReleaseError: a text that can't be read, a step that acts on the mean, steps after the noise, or a model that
            has no such release.
        CoupledReleaseError: a layer that mixes the samples of a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        description: ReleaseSpec | str = "gradient",
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        self.per_sample = PerSampleRelease(model, loss, batch_mean_spec(description).with_noise(None))
        self.loss, self.reduction = loss, reduction

    def accumulated_mean(self, batch: Batch) -> Tensor:
        """The mean (or sum) over one upload, [P], float64 on the CPU, from its samples' own releases bit by bit."""
        size = max(1, CHUNK_ENTRIES // self.per_sample.context.num_entries)
        total = torch.zeros(self.per_sample.context.num_entries, dtype=torch.float64)
        for first in range(0, len(batch), size):
            part = batch.select(list(range(first, min(first + size, len(batch)))))
            total += self.per_sample.mean(part).detach().double().sum(0).cpu()
        return total if self.reduction == "sum" else total / len(batch)

    def evaluate(self, batch: Batch, *, with_gradient: bool) -> BatchPass:
        """Run the model on one upload once.

        Raises:
            ReleaseError: outputs that aren't those of samples, a loss that can't be computed for one sample, or one
                that doesn't depend on the parameters.
        """
        parameters = self.per_sample.parameters
        if with_gradient:
            parameters = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        with torch.set_grad_enabled(with_gradient), sdpa_kernel(SDPBackend.MATH):
            outputs, added = self._sample_outputs(parameters, batch)
            losses = sample_losses(self.loss, outputs, batch.targets, added)
            gradient: Tensor | None = None
            if with_gradient:
                is_sum = self.reduction == "sum"
                value = losses.sum() if is_sum else batch_loss(self.loss, outputs, batch.targets, added)
                if not value.requires_grad:
                    raise ReleaseError("the loss doesn't depend on the parameters, so nothing can be trained by it")
                gradient = self.per_sample.function.flat_gradient(value, parameters, create_graph=False).double().cpu()
        return BatchPass(outputs.detach(), losses.detach(), gradient)

    def shares(self, outputs: Tensor, targets: Tensor) -> list[float] | None:
        """c_i of every sample, given the model's outputs for the batch; None where all are 1 / n, or 1 in a sum.

        Raises:
            CoupledReleaseError: the loss of this batch isn't a sum of its samples' losses with constant factors.
            ReleaseError: it leaves a sample out, or weights samples whose own steps take no account of it.
        """
        shares = shares_of(self.loss, outputs, targets)
        if shares is None:
            raise CoupledReleaseError(
                "the loss of this batch isn't a sum of its samples' losses with constant factors (it compares samples, "
                "or picks some by their losses), so no sample's part of the update is known; train with a loss that is "
                "a (weighted) mean over the samples"
            )
        if not bool((shares.abs() > 0).all()):
            raise ReleaseError(
                f"the loss leaves {int((shares == 0).sum())} of {len(shares)} samples out of the update; hand over the "
                "batch without them, or where it picks samples by their losses, train with a (weighted) mean over the "
                "samples"
            )
        alike = bool(((shares - shares[0]).abs() <= SAME_SHARE * shares[0].abs()).all())
        if self.reduction == "sum" or self.per_sample.changes_gradient:
            # Every sample's own gradient is made first, so that only equal shares mean what the release says.
            if alike:
                return None
            raise ReleaseError(
                "the loss of a batch weights its samples, so the sum (or mean) of their own gradients isn't its "
                'gradient; review the mean gradient without clipping (release "gradient", reduction "mean")'
            )
        mean = 1 / len(shares)
        return None if alike and abs(float(shares[0]) - mean) <= SAME_SHARE * mean else shares.abs().tolist()

    def _sample_outputs(self, parameters: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The model's outputs, seen to be one tensor with an axis of samples, and what layers add to the losses.

        Raises:
            ReleaseError: they are not.
        """
        outputs: object
        outputs, added = self.per_sample.function.run_with_added(parameters, batch.inputs)
        if not isinstance(outputs, Tensor):
            raise ReleaseError(
                f"the model returns a {type(outputs).__name__}, and a release is made by models that return one "
                "tensor; give guard and training a module around it whose forward returns the tensor that the loss "
                "takes, such as its logits"
            )
        shape = self._shape_alone(batch, outputs)
        if shape == outputs.shape[1:]:
            raise ReleaseError(
                f"the model's outputs have the shape {list(outputs.shape)} for {len(batch)} samples and {list(shape)} "
                "for one, since squeeze() without an axis drops the axis of the batch as well; write squeeze(-1) in "
                "the forward"
            )
        return outputs, added

    @torch.no_grad()
    def _shape_alone(self, batch: Batch, outputs: Tensor) -> torch.Size | None:
        """Of the outputs for one sample of several; None where that has nothing to say."""
        if not outputs.ndim or len(outputs) != len(batch) or len(batch) == 1:
            return None
        try:
            return self.per_sample.run(self.per_sample.parameters, batch.inputs[:1]).shape
        except Exception:  # it shows again where the loss of one sample is computed
            return None


def batch_mean_spec(description: ReleaseSpec | str) -> ReleaseSpec:
    """A description of a batch's release, read where it is text.

    Raises:
        ReleaseError: it can't be read, has a step that acts on the mean, or steps after the noise.
    """
    spec = spec_of(description)
    if spec.is_joint:
        raise ReleaseError(f"expected steps on every sample's gradient and noise, found '{spec}'")
    for step in spec.all_steps:
        if not step.before_mean:
            raise ReleaseError(
                f"expected a release of gradient, clip, mask and noise, found '{step}': of a batch's mean "
                "gradient it would keep entries that depend on all samples together; use a mask"
            )
    if spec.steps_after_noise:
        raise ReleaseError(f"expected noise as the last step of the release, found '{spec}'; move it to the end")
    return spec
