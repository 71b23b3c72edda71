"""Bilinear layers: y_k = a^T W_k e + bias_k, trilinear in a, e and the signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from riskaudit.jacobian.structured.layers.contraction import Contraction, Parameters, flattened

_OUTER = "btk,bti,btj->bkij"


@final
class BilinearContraction(Contraction):
    """Factors a [B, ..., i], e [B, ..., j] and b [B, ..., k]; the weight is [k, i, j]."""

    def __init__(self, factors: Sequence[Tensor], roles: frozenset[str]) -> None:
        super().__init__([_positions(factor) for factor in factors], roles)
        self.shapes = [factor.shape for factor in factors]

    def gradient(self) -> Parameters:
        """See `Contraction.gradient`."""
        a, e, b = self.factors
        return self._parameters([(b, a, e)], b)

    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """One term per factor."""
        a, e, b = self.factors
        da, de, db = (_positions(tangent) for tangent in tangents)
        return self._parameters([(db, a, e), (b, da, e), (b, a, de)], db)

    def cotangent(self, cotangents: Mapping[str, Tensor]) -> list[Tensor]:
        """See `Contraction.cotangent`."""
        a, e, b = self.factors
        found = [torch.zeros_like(factor) for factor in self.factors]
        if "weight" in cotangents:
            weight = cotangents["weight"]
            found = [
                torch.einsum("bkij,btk,btj->bti", weight, b, e),
                torch.einsum("bkij,btk,bti->btj", weight, b, a),
                torch.einsum("bkij,bti,btj->btk", weight, a, e),
            ]
        if "bias" in cotangents:
            found[2] = found[2] + cotangents["bias"][:, None, :]
        return [factor.reshape(shape) for factor, shape in zip(found, self.shapes, strict=True)]

    def rotated_tangent(self, tangents: Sequence[Tensor]) -> Tensor:
        """See `Contraction.rotated_tangent`."""
        return flattened(self.tangent(tangents))

    def held_numbers(self) -> int:
        """See `Contraction.held_numbers`."""
        return 0

    def gram(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        """See `Contraction.gram`."""
        return self.cotangent(self.tangent(tangents))

    def _parameters(self, terms: list[tuple[Tensor, Tensor, Tensor]], signal: Tensor) -> Parameters:
        found: Parameters = {}
        if "weight" in self.roles:
            found["weight"] = torch.stack([torch.einsum(_OUTER, *term) for term in terms]).sum(0)
        if "bias" in self.roles:
            found["bias"] = signal.sum(1)
        return found


def _positions(factor: Tensor) -> Tensor:
    return factor.reshape(factor.shape[0], -1, factor.shape[-1])
