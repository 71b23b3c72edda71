"""``batch-norm-buffers``: the batch's mean and variance per channel, where running statistics are sent along.

A batch norm in train mode moves its running mean to (1 - m) running + m mean. Who has both ends, as the server has,
divides the difference by the momentum m: one mini-batch's statistics exactly; after several, their weighted mean.
A state dict is taken to leave whole, unless the release shares parameters by name, or the guard sees to what leaves.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.checks.base import Check, Finding, not_applicable, register
from riskaudit.checks.upload import SentUpload, record_calls
from riskaudit.release.joint import JointRelease
from riskaudit.results.checks import Recovery

# torch's default, for layers that average over all batches.
MOMENTUM = 0.1


@register
@final
class BatchNormBuffers(Check):
    """See the module."""

    id: ClassVar[str] = "batch-norm-buffers"
    title: ClassVar[str] = "Statistics of the batch in running statistics"
    summary: ClassVar[str] = "Running statistics that are sent along give the batch's mean and variance per channel."
    remedy: ClassVar[str] = (
        "Don't send running statistics, and say so by share:* in the release; the guard withholds or resets them."
    )
    source: ClassVar[str] = "Yin et al., CVPR 2021; Huang et al., NeurIPS 2021"
    recovers: ClassVar[Recovery] = "statistics"

    @override
    def run(self, upload: SentUpload) -> list[Finding]:
        release = upload.release
        if not isinstance(release, JointRelease) or not release.mixes_samples:
            return not_applicable("no batch norm computes with the statistics of the batch")
        if not upload.sends_buffers:
            return [Finding("clear", reason="parameters alone leave, and running statistics as they were received")]
        if upload.sees_weights_change or release.spec.num_clients > 1:
            steps = "several mini-batches" if upload.sees_weights_change else "several clients"
            reason = f"running statistics would hold a weighted mean over {steps}, not one batch's own"
            return [Finding("clear", exactness="exact", reason=reason)]
        findings = []
        calls = record_calls(release, upload.batch.inputs, nn.modules.batchnorm._BatchNorm)
        for name, (layer, inputs, _) in calls.items():
            error = _recovery_error(inputs, getattr(layer, "momentum", None) or MOMENTUM)
            if error <= upload.agreement:
                channels = {"channels": inputs.shape[1], "largest_relative_error": error}
                findings.append(Finding("leak", name, range(len(upload.batch)), details=channels))
            else:
                findings.append(Finding("failed", name, reason="the statistics couldn't be told from the update"))
        return findings or not_applicable("no batch norm is called exactly once")


def _recovery_error(inputs: Tensor, momentum: float) -> float:
    """Relative error of the mean and variance that a server recovers which sent running statistics 0 and 1."""
    received = torch.zeros_like(inputs[0].flatten(1)[:, 0] if inputs.ndim > 2 else inputs[0]), None
    mean, variance = received[0].clone(), torch.ones_like(received[0])
    F.batch_norm(inputs, mean, variance, training=True, momentum=momentum)
    recovered = torch.stack([mean / momentum, (variance - (1 - momentum)) / momentum])
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    truth = torch.stack([inputs.mean(axes), inputs.var(axes)])
    scale = truth.abs().amax(1, keepdim=True).clamp_min(torch.finfo(inputs.dtype).tiny)
    return float(((recovered - truth) / scale).abs().max())
