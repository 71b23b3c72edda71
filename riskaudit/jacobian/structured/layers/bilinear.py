"""Bilinear layers: y_k = a^T W_k e + bias_k, trilinear in a, e and the signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from riskaudit.jacobian.structured.layers.contraction import FormedContraction, Parameters, only, positions

_OUTER = "btk,bti,btj->bkij"


@final
class BilinearContraction(FormedContraction):
    """Factors a [B, ..., i], e [B, ..., j] and b [B, ..., k]; the weight is [k, i, j]."""

    def __init__(self, factors: Sequence[Tensor], roles: frozenset[str]) -> None:
        super().__init__([positions(factor) for factor in factors], roles)
        self.shapes = [factor.shape for factor in factors]

    def gradient(self) -> Parameters:
        """See `Contraction.gradient`."""
        a, e, b = self.factors
        return only(self.roles, weight=lambda: torch.einsum(_OUTER, b, a, e), bias=lambda: b.sum(1))

    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """One term per factor."""
        a, e, b = self.factors
        da, de, db = (positions(tangent) for tangent in tangents)
        terms = [(db, a, e), (b, da, e), (b, a, de)]
        return only(
            self.roles,
            weight=lambda: torch.stack([torch.einsum(_OUTER, *term) for term in terms]).sum(0),
            bias=lambda: db.sum(1),
        )

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

    def held_numbers(self) -> int:
        """See `Contraction.held_numbers`."""
        return 0
