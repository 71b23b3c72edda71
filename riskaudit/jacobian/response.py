"""What a step of the inputs does to a release, against what the derivative says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riskaudit.release.derivatives import ReleasedChange


@dataclass(frozen=True)
class FrontLayer:
    """What a step v does to the input of a layer that no other layer's weights come before; B samples, n entries each.

    Attributes:
        value: what enters the layer at x, a(x), [B, n].
        change: a(x + v) - a(x), [B, n].
        predicted: what its derivative says of that, [B, n].
        precision: of one entry of a(x) in the released gradient, per squared noise std, [B], float64.
        weight: name of the layer's weight.
        seen: the share of a sample's d directions that the layer's gradient can show at most.
        outer: whether the layer is fully connected at one position, so that a(x) can be read off its gradient b a(x)^T.
    """

    value: Tensor
    change: Tensor
    predicted: Tensor
    precision: Tensor
    weight: str
    seen: float
    outer: bool


@dataclass(frozen=True)
class StepResponse:
    """What a step v of the inputs does, for B samples; float64.

    Attributes:
        norms: |r(x)|, [B].
        predicted: |J v|, [B].
        change: s(c g(x + v)) - s(g(x)), s the release's steps with the choices that they make at g(x), c <= 1 what
            takes back growth of g.
        front: what it does to the layers in front, as far as they are known.
        adjoint_gap: |<u, A v> - <A^T u, v>| for a random u, relative to the size that such products have, [B], A the
            derivative of r or of what r is made of; None where it wasn't asked for.
    """

    norms: Tensor
    predicted: Tensor
    change: ReleasedChange
    front: list[FrontLayer]
    adjoint_gap: Tensor | None = None


def joined(responses: Sequence[StepResponse]) -> StepResponse:
    """Of several samples' responses, one."""
    gaps = [response.adjoint_gap for response in responses if response.adjoint_gap is not None]
    front = [_together(layer) for layer in zip(*(response.front for response in responses), strict=True)]
    norms, predicted = (
        torch.cat([getattr(response, name) for response in responses]) for name in ("norms", "predicted")
    )
    parts = zip(*((each.change.norms, each.change.unseen, each.change.seen) for each in responses), strict=True)
    change = ReleasedChange(*map(torch.cat, parts))
    return StepResponse(norms, predicted, change, front, torch.cat(gaps) if gaps else None)


def _together(layers: Sequence[FrontLayer]) -> FrontLayer:
    """One layer for several samples."""
    value, change, predicted, precision = (
        torch.cat([getattr(layer, name) for layer in layers]) for name in ("value", "change", "predicted", "precision")
    )
    return FrontLayer(value, change, predicted, precision, layers[0].weight, layers[0].seen, layers[0].outer)


def shrinking(before: Tensor, after: Tensor) -> Tensor:
    """s <= 1 that takes norms ``after`` back to ``before`` where they have grown, [B]."""
    return torch.where(after > before, before / after, torch.ones_like(after))


def pairing_gap(left: Tensor, right: Tensor) -> Tensor:
    """How far sums of terms [B, n] and [B, m], which should be equal, are apart, relative to their random size, [B]."""
    size = left.double().norm(dim=1) + right.double().norm(dim=1)
    gap = (left.double().sum(1) - right.double().sum(1)).abs()
    return torch.where(size > 0, gap / size, gap)
