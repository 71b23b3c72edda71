"""``token-span``: which token stood at which position, by the row span of the first projections of a sequence.

The gradient of a layer that sees every position by itself, as the query, key and value projections do, has rows that
are combinations of what enters at the positions. While fewer tokens than coordinates are in the batch, a token with
its position lies in that span iff it was there, but for chance. Every token of the vocabulary is tried at every
position; tokens that lie in the span without having been there are counted.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.attacks.spans import MOST_INSIDE, OUTSIDE, every_token, row_basis, share_outside
from riskaudit.checks.base import Check, Finding, not_applicable, register
from riskaudit.checks.upload import SentUpload, record_calls
from riskaudit.results.checks import Recovery

# Directions outside the span by which tokens are told that aren't in it.
DRAWN = 4


@register
@final
class TokenSpan(Check):
    """See the module."""

    id: ClassVar[str] = "token-span"
    title: ClassVar[str] = "Tokens and their positions by the span of the first projections"
    summary: ClassVar[str] = "The server learns which token stood at which position."
    remedy: ClassVar[str] = "Share only later layers or adapters, send more tokens than the width, or add noise."
    source: ClassVar[str] = "Petrov et al. (DAGER), NeurIPS 2024"
    recovers: ClassVar[Recovery] = "tokens"

    @override
    def run(self, upload: SentUpload) -> list[Finding]:
        tokens = upload.batch.inputs
        if tokens.is_floating_point() or tokens.ndim != 2:
            return not_applicable("inputs aren't sequences of tokens")
        if upload.noise_std > 0:
            return [Finding("clear", exactness="predicted", reason="noise leaves no token exactly in the span")]
        embeddings = record_calls(upload.release, tokens, nn.Embedding)
        read = [layer for layer, indices, _ in embeddings.values() if torch.equal(indices, tokens.clamp_min(0))]
        sizes = [layer.num_embeddings for layer in read if isinstance(layer, nn.Embedding)]
        sequences = [layer for layer in upload.fully_connected if len(layer.inputs) == tokens.numel()]
        if not sizes or not sequences or sequences[0].weight is None:
            return not_applicable("no projection of every position's token leaves")
        return [_finding(upload, sequences[0].name, sequences[0].weight, sizes[0])]


def _finding(upload: SentUpload, name: str, weight: Tensor, vocabulary: int) -> Finding:
    tokens = upload.batch.inputs
    basis = row_basis(weight)
    details: dict[str, int] = {"rank": len(basis), "features": weight.shape[1], "vocabulary": vocabulary}
    if len(basis) >= weight.shape[1]:
        reason = "the rows span all coordinates, so that every token lies in the span"
        return Finding("clear", name, details=dict(details), reason=reason)
    inside = torch.cat(
        [_is_inside(part, basis) for part in every_token(upload.release, name, vocabulary, tokens.shape[1])]
    )
    present = torch.zeros_like(inside)
    # Numbers below 0 stand for no token, beyond the end of a shorter text.
    real = tokens >= 0
    for position in range(tokens.shape[1]):
        present[tokens[real[:, position], position], position] = True
    details["false_tokens"] = int((inside & ~present).sum())
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    complete = (inside[tokens.clamp_min(0), places] | ~real).all(1)
    # A layer norm before the layer keeps every token in a plane, which the span may fill.
    tells = inside.double().mean(0) <= MOST_INSIDE
    if bool(complete.any()) and not bool(tells.all()):
        reason = "most tokens of the vocabulary lie in the span as well, so that it tells none of them"
        return Finding("clear", name, details=dict(details), reason=reason)
    positions = torch.nonzero(complete).flatten().tolist()
    if not positions:
        reason = "what enters the layer depends on the other positions, so that no token alone lies in the span"
        return Finding("clear", name, details=dict(details), reason=reason)
    return Finding("leak", name, positions, clear_from_std=0.0, details=dict(details))


def _is_inside(vectors: Tensor, basis: Tensor) -> Tensor:
    """Which of vectors [V, T, a] lie in the span of orthonormal rows [r, a], [V, T].

    Few do, and the others are told by their products with a few directions outside the span, drawn at random: those of
    a vector in it are rounding.
    """
    drawn = torch.randn(DRAWN, basis.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outwards = drawn.to(basis)
    outwards = outwards - (outwards @ basis.mT) @ basis
    reached = (vectors @ outwards.mT).square().sum(-1)
    # By Cauchy and Schwarz no vector within the limit reaches further.
    most = OUTSIDE * vectors.square().sum(-1) * outwards.square().sum()
    inside = reached <= most
    inside[inside.clone()] = share_outside(vectors[inside], basis) <= OUTSIDE
    return inside
