"""Parameters that scale or shift what passes: the weights of normalisations, and plain products and sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from riskaudit.jacobian.structured.layers.contraction import FormedContraction, Parameters, only


@final
class ScaleShiftContraction(FormedContraction):
    """y = a * weight + bias, both broadcast as [1, ...] against a [B, ...]; factors a and b.

    Args:
        factors: a and b, of one shape.
        roles: "weight" and "bias", or one of them.
        shapes: the parameters' own shapes per role.
        broadcast: the shape that a parameter takes beside one sample, [...], 1 where it is repeated.
    """

    def __init__(
        self,
        factors: Sequence[Tensor],
        roles: frozenset[str],
        shapes: Mapping[str, torch.Size],
        broadcast: Mapping[str, tuple[int, ...]],
    ) -> None:
        super().__init__(factors, roles)
        self.shapes, self.broadcast = shapes, broadcast

    def gradient(self) -> Parameters:
        """See `Contraction.gradient`."""
        a, b = self.factors
        return only(self.roles, weight=lambda: self._summed("weight", a * b), bias=lambda: self._summed("bias", b))

    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """Of the weight: da b + a db, summed over where it is repeated."""
        (a, b), (da, db) = self.factors, tangents
        return only(
            self.roles,
            weight=lambda: self._summed("weight", torch.addcmul(da * b, a, db)),
            bias=lambda: self._summed("bias", db),
        )

    def cotangent(self, cotangents: Mapping[str, Tensor]) -> list[Tensor]:
        """U b and U a."""
        a, b = self.factors
        inputs, signals = torch.zeros_like(a), torch.zeros_like(b)
        if "weight" in cotangents:
            weight = self._repeated("weight", cotangents["weight"])
            inputs, signals = weight * b, weight * a
        if "bias" in cotangents:
            signals = signals + self._repeated("bias", cotangents["bias"])
        return [inputs, signals]

    def held_numbers(self) -> int:
        """See `Contraction.held_numbers`."""
        return 0

    def _summed(self, role: str, values: Tensor) -> Tensor:
        repeated = [axis for axis, size in enumerate(self.broadcast[role], 1) if size == 1]
        if repeated:
            values = values.sum(repeated)
        return values.reshape(len(values), *self.shapes[role])

    def _repeated(self, role: str, parameters: Tensor) -> Tensor:
        return parameters.reshape(len(parameters), *self.broadcast[role])


@final
class ShiftContraction(FormedContraction):
    """A parameter that is repeated over the samples and used as it is: y = p; the only factor is b [B, ...].

    Args:
        factors: b.
        roles: "value".
        shape: the parameter's own shape.
        broadcast: the shape that it takes beside one sample, 1 where it is repeated.
    """

    def __init__(
        self, factors: Sequence[Tensor], roles: frozenset[str], shape: torch.Size, broadcast: tuple[int, ...]
    ) -> None:
        super().__init__(factors, roles)
        self.shape, self.broadcast = shape, broadcast

    def gradient(self) -> Parameters:
        """See `Contraction.gradient`."""
        return self.tangent(self.factors)

    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """The signal's tangent, summed over where the parameter is repeated."""
        (db,) = tangents
        repeated = [axis for axis, size in enumerate(self.broadcast, 1) if size == 1]
        summed = db.sum(repeated) if repeated else db
        return {"value": summed.reshape(len(db), *self.shape)}

    def cotangent(self, cotangents: Mapping[str, Tensor]) -> list[Tensor]:
        """See `Contraction.cotangent`."""
        (b,) = self.factors
        return [cotangents["value"].reshape(len(b), *self.broadcast).expand_as(b)]

    def held_numbers(self) -> int:
        """See `Contraction.held_numbers`."""
        return 0
