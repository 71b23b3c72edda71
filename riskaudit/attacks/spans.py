"""Which tokens lie in the span of a layer's gradient: what the check ``token-span`` and the attack have in common.

The gradient of a fully connected layer that sees every position by itself is D^T A, A [R, a] what enters at the R
positions, so that its rows lie in the span of A's: while fewer tokens than coordinates are in the batch, a vector that
entered lies in it, and another one doesn't, but for chance (Petrov et al. (DAGER), NeurIPS 2024, Theorem 3.1 and
section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from riskaudit.release import Release

# Share of a vector's squared norm outside the span up to which it is in it.
OUTSIDE = 1e-9
# Share of the vocabulary in the span at a position from which on it tells no token there.
MOST_INSIDE = 0.5
# Sequences in one pass of the model.
SEQUENCES = 256


def row_basis(weight: Tensor, most: int | None = None) -> Tensor:
    """Orthonormal rows [r, a] with the span of the rows of [m, a].

    Args:
        weight: of a layer's gradient.
        most: directions to keep, the largest ones; None for all that aren't rounding.
    """
    _, values, rows = torch.linalg.svd(weight, full_matrices=False)
    basis: Tensor = rows[values > values[0] * max(weight.shape) * torch.finfo(values.dtype).eps]
    return basis if most is None else basis[:most]


def share_outside(vectors: Tensor, basis: Tensor) -> Tensor:
    """Share of the squared norm of vectors [..., a] outside the span of orthonormal rows [r, a], [...]."""
    squared = vectors.square().sum(-1)
    rest = (vectors - (vectors @ basis.mT) @ basis).square().sum(-1)
    return torch.where(squared > 0, rest / squared.clamp_min(1e-300), 1.0)


def every_token(release: Release, name: str, vocabulary: int, length: int) -> Iterator[Tensor]:
    """What enters a layer for every token of the vocabulary at every position, [V, T, a], in parts."""
    for first in range(0, vocabulary, SEQUENCES):
        numbers = torch.arange(first, min(first + SEQUENCES, vocabulary), device=release.device)
        sequences = numbers[:, None].expand(-1, length)
        yield first_input(release, sequences, name).reshape(len(sequences), length, -1)


def first_input(release: Release, inputs: Tensor, name: str) -> Tensor:
    """What enters a layer first when the model runs on inputs [N, *S]; what comes after that layer isn't computed."""
    seen: list[Tensor] = []

    def noting(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0].detach())
        raise _ReachedError

    handle = release.model.get_submodule(name).register_forward_pre_hook(noting)
    try:
        with torch.no_grad(), suppress(_ReachedError):
            release.run(release.parameters, inputs)
    finally:
        handle.remove()
    return seen[0]


class _ReachedError(Exception):
    """Nothing more has to be computed."""
