"""``labels``: which labels are in an upload, and how many of each, read off the last layer.

For one sample the gradient of the logits is negative at the label alone; in a mean or after local steps of SGD counts
follow from n p - n db with the model's mean output p (`riskaudit.attacks.labels`). Compared with the truth: exact or
not. Where counts can't be read that way or come out wrong, as in clipped means and after steps of Adam, the signs of
the last bias's gradient still prove which classes are there; where they can't be read either, nothing is said for or
against.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from typing_extensions import override

from riskaudit.attacks import AttackNotApplicable, recover_labels
from riskaudit.attacks.labels import proven_classes
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
        truth = upload.batch.targets.sort().values
        exactness: Exactness = "exact" if upload.noise_std == 0 else "predicted"
        try:
            recovered = recover_labels(upload.observation).sort().values
        except AttackNotApplicable as error:
            return [self._by_signs(upload, exactness) or _unread(upload, str(error))]
        if torch.equal(recovered, truth):
            return [Finding("leak", positions=range(len(truth)), exactness=exactness)]
        proven = self._by_signs(upload, exactness)
        if proven is not None:
            return [proven]
        classes = int(max(recovered.max(), truth.max())) + 1
        counts = torch.stack([torch.bincount(each, minlength=classes) for each in (recovered, truth)])
        right = int(counts.amin(0).sum())
        reason = f"of {len(truth)} labels {right} are read off right, so that the server can't tell which are"
        return [Finding("clear", exactness=exactness, details={"right": right}, reason=reason)]

    @staticmethod
    def _by_signs(upload: SentUpload, exactness: Exactness) -> Finding | None:
        """What the signs of the last bias's gradient prove; None where they prove nothing, or name what isn't there."""
        if upload.release.coupling != "joint":
            return None
        try:
            (named,) = proven_classes(upload.observation)
        except AttackNotApplicable:
            return None
        labels = upload.batch.targets.tolist()
        if not named or not set(named) <= set(labels):
            return None
        positions = [position for position, label in enumerate(labels) if label in named]
        reason = (
            f"the signs of the last bias's entries prove {len(named)} of the {len(set(labels))} classes in the upload, "
            "not how often each is there; the others are not cleared"
        )
        return Finding("leak", positions=positions, exactness=exactness, details={"classes": len(named)}, reason=reason)


def _unread(upload: SentUpload, reason: str) -> Finding:
    """Another attacker may read what this one can't, as long as entries of an output layer leave."""
    if _sends_output_layer(upload):
        return Finding("failed", reason=f"not judged, which is no protection: {reason}")
    return Finding("not_applicable", reason=reason)


def _sends_output_layer(upload: SentUpload) -> bool:
    """Whether entries leave with as many rows as the model has outputs."""
    with torch.no_grad():
        outputs = upload.release.run(upload.release.parameters, upload.batch.inputs)
    return any(entries.ndim > 0 and len(entries) == outputs.shape[-1] for entries in upload.entries.values())
