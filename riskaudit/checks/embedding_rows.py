"""``embedding-rows``: the bag of tokens, by the rows of an embedding's gradient that aren't zero.

Only the rows of tokens that occur have a gradient. Where the output layer shares the weight, every row has one.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import nn
from typing_extensions import override

from riskaudit.attacks.linear_layers import own_parameter
from riskaudit.checks.base import Check, Finding, not_applicable, register
from riskaudit.checks.upload import SentUpload, record_calls
from riskaudit.results.checks import Recovery


@register
@final
class EmbeddingRows(Check):
    """See the module."""

    id: ClassVar[str] = "embedding-rows"
    title: ClassVar[str] = "Tokens by the rows of an embedding"
    summary: ClassVar[str] = "The server learns which tokens (or categories) occur in the upload."
    remedy: ClassVar[str] = "Freeze the embedding or don't share it; noise must be on all of its rows."
    source: ClassVar[str] = "Melis et al., S&P 2019; Fowl et al. (Decepticons), ICLR 2023"
    recovers: ClassVar[Recovery] = "tokens"

    @override
    def run(self, upload: SentUpload) -> list[Finding]:
        findings = []
        for name, (layer, indices, _) in record_calls(upload.release, upload.batch.inputs, nn.Embedding).items():
            assert isinstance(layer, nn.Embedding)
            parameter = own_parameter(upload.release.model, layer, "weight")
            entries = None if parameter is None else upload.entries_of(parameter)
            if entries is None or indices.shape[0] != len(upload.batch) or _are_places(indices, upload.batch.inputs):
                continue
            if upload.noise_std > 0:
                reason = "the noise fills every row, so that none shows whether it was empty"
                findings.append(Finding("clear", name, exactness="predicted", reason=reason))
                continue
            inputs = upload.batch.inputs
            real = inputs >= 0 if inputs.shape == indices.shape else torch.ones_like(indices, dtype=torch.bool)
            findings.append(_finding(name, layer, indices, real, entries.abs().amax(1) > 0))
        return findings or not_applicable("no embedding leaves whose weight is its own")


def _are_places(indices: torch.Tensor, inputs: torch.Tensor) -> bool:
    """Whether a layer looks up one number for each token of a text and it isn't the token's, but its place's, say."""
    # Numbers below 0 stand for no token, beyond the end of a shorter text.
    return (
        not inputs.is_floating_point()
        and indices.shape == inputs.shape
        and not torch.equal(indices, inputs.clamp_min(0).to(indices))
    )


def _finding(
    name: str, layer: nn.Embedding, indices: torch.Tensor, real: torch.Tensor, filled: torch.Tensor
) -> Finding:
    present = torch.zeros_like(filled)
    present[indices[real]] = True
    if layer.padding_idx is not None:
        present[layer.padding_idx] = False
    details = {"rows": int(filled.sum()), "false_rows": int((filled & ~present).sum()), "vocabulary": len(filled)}
    complete = filled[indices.flatten(1)] | ~real.flatten(1)
    if layer.padding_idx is not None:
        complete |= indices.flatten(1) == layer.padding_idx
    positions = torch.nonzero(complete.all(1)).flatten().tolist()
    if bool(filled.all()):
        return Finding("clear", name, details=details, reason="every row has a gradient, so that it rules nothing out")
    if not positions or details["false_rows"]:
        return Finding("clear", name, details=details, reason="the rows with a gradient aren't those of the tokens")
    return Finding("leak", name, positions, clear_from_std=0.0, details=details)
