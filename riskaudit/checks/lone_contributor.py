"""``lone-contributor``: entries of the upload that one sample alone fills.

An entry to which every other sample contributes exactly 0 is that sample's, times a known factor: averaging doesn't
mix it, nor does secure aggregation, whose sum shows it as it is. Which entries aren't zero says by itself that such a
sample was there. Rows of embeddings and units behind a ReLU are the usual places.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.checks.base import Check, Finding, not_applicable, register
from riskaudit.checks.upload import SentUpload
from riskaudit.release.joint import JointRelease
from riskaudit.release.steps.clip import Clip
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
        reason = _inapplicable(upload)
        if reason is not None:
            return not_applicable(reason)
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
        return [
            Finding(
                "leak", positions=positions, clear_from_std=0.0, details={"filled": filled, "share_of_entries": shares}
            )
        ]


def _inapplicable(upload: SentUpload) -> str | None:
    """Why nothing can be said of single samples' entries; None where something can."""
    release = upload.release
    if len(upload.batch) == 1:
        return "the sample leaves alone, so that every entry is its own"
    if isinstance(release, JointRelease) and release.mixes_samples:
        return "batch norm with the batch's statistics lets every sample touch every entry"
    if upload.sees_weights_change:
        return "entries of several steps' gradients aren't one sample's at the received weights"
    if any(step.chooses and not isinstance(step, Clip) for step in release.spec.all_steps):
        return "which entries are left is chosen by what all samples add up to"
    return None


def _contributors(upload: SentUpload) -> tuple[Tensor, Tensor]:
    """How many samples fill every entry that leaves [P'], and the last of them."""
    count = torch.zeros_like(upload.mean, dtype=torch.int32)
    owner = torch.zeros_like(upload.mean, dtype=torch.int64)
    for position in range(len(upload.batch)):
        others = torch.ones(len(upload.batch), dtype=torch.bool, device=upload.mean.device)
        others[position] = False
        filled = upload.release.mean(replace(upload.batch, left_out=others)).detach()[0] != 0
        count += filled
        owner[filled] = position
    return count, owner
