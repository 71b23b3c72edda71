"""``lone-contributor``: entries of the upload that one sample alone fills.

An entry to which every other sample contributes exactly 0 is that sample's, times a known factor: averaging doesn't
mix it, nor does secure aggregation, whose sum shows it as it is. Which entries aren't zero says by itself that such a
sample was there. Rows of embeddings and units behind a ReLU are the usual places.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.checks.base import Check, Finding, not_applicable, register
from riskaudit.checks.upload import SentUpload
from riskaudit.release.joint import JointRelease
from riskaudit.results.checks import Recovery


@register
@final
class LoneContributor(Check):
    """See the module."""

    id: ClassVar[str] = "lone-contributor"
    title: ClassVar[str] = "Entries that one sample alone fills"
    summary: ClassVar[str] = "Some entries of the upload come from a single sample, unmixed, through any averaging."
    remedy: ClassVar[str] = "Add noise to every entry, or leave sparse layers out of what is shared."
    source: ClassVar[str] = "Melis et al., S&P 2019; Pasquini et al., CCS 2022"
    recovers: ClassVar[Recovery] = "membership"

    @override
    def run(self, upload: SentUpload) -> list[Finding]:
        release = upload.release
        if len(upload.batch) == 1:
            return not_applicable("the sample leaves alone, so that every entry is its own")
        if isinstance(release, JointRelease) and release.mixes_samples:
            return not_applicable("batch norm with the batch's statistics lets every sample touch every entry")
        if upload.sees_weights_change:
            return not_applicable("entries of several steps' gradients aren't one sample's at the received weights")
        if upload.noise_std > 0:
            return [Finding("clear", reason="the noise fills every entry, so that none shows whether it was empty")]
        count, owner = _contributors(upload)
        lone = torch.bincount(owner[count == 1], minlength=len(upload.batch)).tolist()
        positions = [position for position, entries in enumerate(lone) if entries]
        filled = int((count > 0).sum())
        if not positions:
            return [
                Finding("clear", details={"filled": filled}, reason="several samples fill every entry that isn't 0")
            ]
        shares = {position: lone[position] / filled for position in positions}
        return [Finding("leak", positions=positions, details={"filled": filled, "share_of_entries": shares})]


def _contributors(upload: SentUpload) -> tuple[Tensor, Tensor]:
    """How many samples fill every entry [P], and the last of them."""
    release, size = upload.release, upload.release.context.num_entries
    count = torch.zeros(size, dtype=torch.int32, device=upload.mean.device)
    owner = torch.zeros(size, dtype=torch.int64, device=upload.mean.device)
    for position, (inputs, target) in enumerate(upload.batch.pairs()):
        gradient = release.function.or_plainly(
            lambda inputs=inputs, target=target: release.function.sample_gradient(inputs, target),  # type: ignore[misc]
            lambda inputs=inputs, target=target: release.function.plain_gradient(inputs, target).detach(),  # type: ignore[misc]
        )
        filled = gradient != 0
        count += filled
        owner[filled] = position
    return count, owner
