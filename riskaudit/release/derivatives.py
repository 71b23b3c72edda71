"""Derivatives of the pipeline's deterministic steps around a sample: each keeps entries or projects.

A chain of them is D = c (diag(m) - sum_i p_i q_i^T), with a number c, kept entries m (0 or 1) and vectors
p_i, q_i per sample. `Chain` holds that; P is the number of released entries, B the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """diag(mask): mask is 0 or 1, [P] for all samples or [B, P]."""

    mask: Tensor


@dataclass(frozen=True)
class Projected:
    """scale (I - unit unit^T): scale [B]; unit [B, P] is a unit vector, or 0 where nothing is projected out."""

    scale: Tensor
    unit: Tensor


Derivative = Kept | Projected | None


@dataclass
class Chain:
    """D of a whole pipeline at B samples; None stands for 1.

    Attributes:
        scale: c, [B].
        kept: m, [P] or [B, P].
        left: p_i, [B, P] each.
        right: q_i, [B, P] each.
    """

    scale: Tensor | None = None
    kept: Tensor | None = None
    left: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)

    def then(self, step: Derivative) -> None:
        """Apply one more step after those so far."""
        if isinstance(step, Kept):
            self.kept = step.mask if self.kept is None else self.kept * step.mask
            self.left = [step.mask * vector for vector in self.left]
        if isinstance(step, Projected):
            self.scale = step.scale if self.scale is None else self.scale * step.scale
            inside = step.unit if self.kept is None else self.kept * step.unit
            self.left = [vector - step.unit * _dot(step.unit, vector) for vector in self.left]
            self.left.append(step.unit)
            self.right.append(inside)

    def apply(self, vector: Tensor) -> Tensor:
        """D u for u [B, P]."""
        return self._scaled(self._low_rank(vector, self.left, self.right))

    def transpose(self, vector: Tensor) -> Tensor:
        """D^T u for u [B, P]."""
        return self._scaled(self._low_rank(vector, self.right, self.left))

    def _low_rank(self, vector: Tensor, outside: list[Tensor], inside: list[Tensor]) -> Tensor:
        result = vector if self.kept is None else self.kept * vector
        for out, into in zip(outside, inside, strict=True):
            result = result - out * _dot(into, vector)
        return result

    def _scaled(self, vector: Tensor) -> Tensor:
        return vector if self.scale is None else self.scale[:, None] * vector


def chain(released: Tensor, steps: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Derivative]]]) -> Chain:
    """D of steps at released gradients [B, P]: each is its mean on one row and its derivative on all."""
    whole = Chain()
    for mean, derivative in steps:
        whole.then(derivative(released))
        released = torch.stack([mean(row) for row in released])
    return whole


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(-1, keepdim=True)
