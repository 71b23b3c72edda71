"""``labels``: which labels are in an upload, and how many of each, read off the last layer.

For one sample the gradient of the logits is negative at the label alone; in a mean or after local steps of SGD counts
follow from n p - n db with the model's mean output p (`riskaudit.attacks.labels`). Compared with the truth: exact or
not. Where it can't be read that way, as after steps of Adam, nothing is said for or against.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from typing_extensions import override

from riskaudit.attacks import AttackNotApplicable, recover_labels
from riskaudit.checks.base import Check, Finding, not_applicable, register
from riskaudit.checks.upload import SentUpload
from riskaudit.results.checks import Exactness, Recovery


@register
@final
class Labels(Check):
    """See the module."""

    id: ClassVar[str] = "labels"
    title: ClassVar[str] = "Labels read off the last layer"
    summary: ClassVar[str] = "The server learns which labels are in the upload, and how many of each."
    remedy: ClassVar[str] = "Treat labels as disclosed; only noise on the last layer, or not sharing it, hides them."
    source: ClassVar[str] = "Zhao et al. (iDLG), 2020; Yin et al., CVPR 2021; Geng et al., 2021"
    recovers: ClassVar[Recovery] = "labels"

    @override
    def run(self, upload: SentUpload) -> list[Finding]:
        if upload.batch.targets.ndim != 1 or upload.batch.targets.is_floating_point():
            return not_applicable("targets aren't class numbers")
        try:
            recovered = recover_labels(upload.observation).sort().values
        except AttackNotApplicable as error:
            # Another attacker may read what this one can't, as long as entries of an output layer leave.
            if _sends_output_layer(upload):
                return [Finding("failed", reason=f"not judged: {error}")]
            return not_applicable(str(error))
        truth = upload.batch.targets.sort().values
        exactness: Exactness = "exact" if upload.noise_std == 0 else "predicted"
        if torch.equal(recovered, truth):
            return [Finding("leak", positions=range(len(truth)), exactness=exactness)]
        classes = int(max(recovered.max(), truth.max())) + 1
        counts = torch.stack([torch.bincount(each, minlength=classes) for each in (recovered, truth)])
        right = int(counts.amin(0).sum())
        reason = f"of {len(truth)} labels {right} are read off right, so that the server can't tell which are"
        return [Finding("clear", exactness=exactness, details={"right": right}, reason=reason)]


def _sends_output_layer(upload: SentUpload) -> bool:
    """Whether entries leave with as many rows as the model has outputs."""
    with torch.no_grad():
        outputs = upload.release.run(upload.release.parameters, upload.batch.inputs)
    return any(entries.ndim > 0 and len(entries) == outputs.shape[-1] for entries in upload.entries.values())
