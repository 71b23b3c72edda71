"""What one call of a layer adds to a sample's gradient: a multilinear map of its factors.

The factors of a call are the activations that enter it and, last, the back-propagated signal at its
output (docs/theory.md, section 5). The gradient of the call's parameters is linear in each of them, so a
tangent of the factors gives a tangent of the gradient, and the transpose of that map gives
cotangents of the factors. ``gram`` is the one after the other, which some layers can do without ever
forming anything as large as their weight.

Letters: B samples, T positions, a inputs and c outputs of a layer. Every factor starts with B.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, final

import torch
from torch import Tensor
from typing_extensions import override

# Per role of a parameter in its layer ("weight", "bias", ...): one tensor per sample, [B, *parameter shape].
Parameters: TypeAlias = dict[str, Tensor]


class Contraction(ABC):
    """One call at B samples.

    Args:
        factors: values of the activations and the signal, [B, ...] each, without a graph.
        roles: the parameters asked for; the others are frozen.
    """

    def __init__(self, factors: Sequence[Tensor], roles: frozenset[str]) -> None:
        self.factors = list(factors)
        self.roles = roles

    @abstractmethod
    def gradient(self) -> Parameters:
        """The gradient of the parameters asked for."""

    @abstractmethod
    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """Derivative of the gradient along tangents of the factors."""

    @abstractmethod
    def cotangent(self, cotangents: Mapping[str, Tensor]) -> list[Tensor]:
        """Transpose of `tangent`: one cotangent per factor."""

    @abstractmethod
    def rotated_tangent(self, tangents: Sequence[Tensor]) -> Tensor:
        """`tangent` as vectors [B, r] up to a rotation: their inner products are the same, r may be smaller."""

    @abstractmethod
    def held_numbers(self) -> int:
        """Numbers held besides the factors."""

    @abstractmethod
    def gram(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        """`cotangent` of `tangent`."""


class FormedContraction(Contraction):
    """A contraction whose parameters are small enough that nothing beats forming their tangent."""

    @final
    @override
    def gram(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        return self.cotangent(self.tangent(tangents))

    @final
    @override
    def rotated_tangent(self, tangents: Sequence[Tensor]) -> Tensor:
        return flattened(self.tangent(tangents))


def flattened(parameters: Parameters) -> Tensor:
    """The parameters of a call as one vector per sample, [B, r]."""
    return torch.cat([value.reshape(len(value), -1) for value in parameters.values()], dim=1)


def select_roles(roles: frozenset[str], **make: Callable[[], Tensor]) -> Parameters:
    """The parameters of the roles asked for, each made only then."""
    return {role: compute() for role, compute in make.items() if role in roles}


def positions(factor: Tensor) -> Tensor:
    """[B, ..., n] as [B, T, n]."""
    return factor.reshape(factor.shape[0], -1, factor.shape[-1])
