"""Derivatives of a release's steps around the gradients of B samples, as operators on vectors [B, P].

A step in closed form keeps entries or projects, and a chain of such steps is D = c (diag(m) - sum_i p_i q_i^T), with a
number c, kept entries m (0 or 1) and vectors p_i, q_i per sample: `Chain` holds that. Any other step is differentiated
automatically, in forward and in reverse mode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import final

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap
from typing_extensions import override

from riskaudit.release.steps import BoundStep, applied
from riskaudit.release.steps.base import VectorFunction
from riskaudit.release.steps.closed_forms import ClosedForm, Kept

# Steps are flat in an entry that moves more than so many times as far as their derivative says, here and where all
# entries move as far as the largest is from 0: what merely jumps to the next point of a grid isn't flat.
FLAT_FACTOR = 20.0


class Derivative(ABC):
    """D at B samples, each [P, P]."""

    @abstractmethod
    def apply(self, vector: Tensor) -> Tensor:
        """D u for u [B, P]."""

    @abstractmethod
    def transpose(self, vector: Tensor) -> Tensor:
        """D^T u for u [B, P]."""


@final
@dataclass
class Chain(Derivative):
    """D of steps in closed form; None stands for 1.

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

    def then(self, step: ClosedForm) -> None:
        """Apply one more step after those so far."""
        if isinstance(step, Kept):
            self.kept = step.mask if self.kept is None else self.kept * step.mask
            self.left = [step.mask * vector for vector in self.left]
            return
        self.scale = step.scale if self.scale is None else self.scale * step.scale
        inside = step.unit if self.kept is None else self.kept * step.unit
        self.left = [vector - step.unit * _dot(step.unit, vector) for vector in self.left]
        self.left.append(step.unit)
        self.right.append(inside)

    @override
    def apply(self, vector: Tensor) -> Tensor:
        return self._scaled(self._low_rank(vector, self.left, self.right))

    @override
    def transpose(self, vector: Tensor) -> Tensor:
        return self._scaled(self._low_rank(vector, self.right, self.left))

    def _low_rank(self, vector: Tensor, outside: list[Tensor], inside: list[Tensor]) -> Tensor:
        result = vector if self.kept is None else self.kept * vector
        for out, into in zip(outside, inside, strict=True):
            result = result - out * _dot(into, vector)
        return result

    def _scaled(self, vector: Tensor) -> Tensor:
        return vector if self.scale is None else self.scale[:, None] * vector


@final
@dataclass(frozen=True)
class AutomaticDerivative(Derivative):
    """D of any function of vectors [P], at B of them.

    Attributes:
        function: of one vector [P].
        at: the vectors, [B, P].
    """

    function: VectorFunction
    at: Tensor

    @override
    def apply(self, vector: Tensor) -> Tensor:
        pushed: Tensor
        _, pushed = jvp(vmap(self.function), (self.at,), (vector,))  # type: ignore[misc]
        return pushed

    @override
    def transpose(self, vector: Tensor) -> Tensor:
        pulled: Tensor
        _, pullback = vjp(vmap(self.function), self.at)  # type: ignore[misc]
        (pulled,) = pullback(vector)
        return pulled


@final
@dataclass(frozen=True)
class ReleasedChange:
    """What steps make of a change of B vectors [B, P].

    Choices of the steps are those at the vectors themselves: other ones don't count.

    Attributes:
        norms: of what it is, [B], float64.
        unseen: norms of what the steps' derivative doesn't tell of it, in entries where the steps are flat
            (`FLAT_FACTOR`); 0 where the derivative tells everything, and all of it where the derivative tells less than
            it hides of a random change of this size.
        seen: norms of what it tells, no more than there is.
    """

    norms: Tensor
    unseen: Tensor
    seen: Tensor

    @classmethod
    def told(cls, norms: Tensor) -> ReleasedChange:
        """One that the derivative tells everything of."""
        return cls(norms, torch.zeros_like(norms), norms)


@final
@dataclass(frozen=True)
class Product(Derivative):
    """One derivative after the other.

    Attributes:
        factors: the first to be applied comes first.
    """

    factors: Sequence[Derivative]

    @override
    def apply(self, vector: Tensor) -> Tensor:
        for factor in self.factors:
            vector = factor.apply(vector)
        return vector

    @override
    def transpose(self, vector: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            vector = factor.transpose(vector)
        return vector


def change_through(
    gradients: Tensor, change: Tensor, steps: Sequence[BoundStep], inputs: Tensor | None = None
) -> ReleasedChange:
    """What steps make of a change of any size.

    Args:
        gradients: where the change begins, [B, P].
        change: [B, P].
        steps: see `derivative_of`.
        inputs: see `derivative_of`.
    """
    released = _changed(gradients, change, steps, inputs)
    norms = released.norm(dim=1).double()
    if all(map(_is_constant, steps)):
        return ReleasedChange.told(norms)
    derivative = derivative_of(gradients, steps, inputs)
    told = derivative.apply(change).abs()
    signs = torch.randint(2, gradients.shape[1:], generator=torch.Generator().manual_seed(0)).to(gradients) * 2 - 1
    probe = gradients.abs().amax(1, keepdim=True) * signs
    flat = _changed(gradients, probe, steps, inputs).abs() > FLAT_FACTOR * derivative.apply(probe).abs()
    unseen = torch.where(flat, (released.abs() - FLAT_FACTOR * told).clamp_min(0.0), 0.0).norm(dim=1).double()
    seen = torch.minimum(released.abs(), told).norm(dim=1).double()
    # A derivative of few directions may tell of this change by chance; of one in all directions it doesn't.
    probe = change.square().mean(1, keepdim=True).sqrt() * signs
    moved, told = _changed(gradients, probe, steps, inputs).abs(), derivative.apply(probe).abs()
    hidden, shown = torch.where(moved > FLAT_FACTOR * told, moved, 0.0), torch.minimum(moved, told)
    blind = hidden.norm(dim=1) > shown.norm(dim=1)
    return ReleasedChange(norms, torch.where(blind, norms, unseen), torch.where(blind, 0.0, seen))


def _is_constant(bound: BoundStep) -> bool:
    """Whether all that a step does besides its choices is in its derivative."""
    return bound.step.chooses or bound.step.keeps_noise


def _changed(gradients: Tensor, change: Tensor, steps: Sequence[BoundStep], inputs: Tensor | None) -> Tensor:
    """What becomes of a change [B, P], the choices of the steps being those at the gradients."""
    rest = list(steps)
    for constant, group in groupby(steps, key=_is_constant):
        part = list(group)
        rest = rest[len(part) :]
        before = _through(part, gradients, inputs) if rest or not constant else gradients
        if constant:
            change = derivative_of(gradients, part, inputs).apply(change)
        else:
            change = _through(part, gradients + change, inputs) - before
        gradients = before
    return change


def _through(steps: Sequence[BoundStep], vectors: Tensor, inputs: Tensor | None) -> Tensor:
    """Vectors [B, P] after steps."""
    samples = [None] * len(vectors) if inputs is None else inputs
    return torch.stack([applied(steps, row, sample) for row, sample in zip(vectors, samples, strict=True)])


def derivative_of(gradients: Tensor, steps: Sequence[BoundStep], inputs: Tensor | None = None) -> Derivative:
    """D of steps at gradients.

    Args:
        gradients: which the first step is applied to, [B, P].
        steps: the first to be applied comes first.
        inputs: of the samples that the gradients belong to, [B, *S]; None where they belong to several each.
    """
    factors: list[Derivative] = []
    for index, bound in enumerate(steps):
        if index:
            gradients = _through([steps[index - 1]], gradients, inputs)
        closed_form = bound.derivative(gradients, inputs)
        if closed_form is None:
            factors.append(AutomaticDerivative(bound.apply, gradients))
            continue
        chain = factors.pop() if factors and isinstance(factors[-1], Chain) else Chain()
        assert isinstance(chain, Chain)
        chain.then(closed_form)
        factors.append(chain)
    return factors[0] if len(factors) == 1 else Product(factors) if factors else Chain()


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(-1, keepdim=True)
