"""Embeddings looked up by numbers that don't depend on the audited input's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from riskaudit.jacobian.structured.layers.contraction import FormedContraction, Parameters


@final
class EmbeddingContraction(FormedContraction):
    """y = weight[numbers]; the only factor is b [B, ..., E].

    Args:
        factors: b.
        roles: "weight".
        numbers: rows looked up, [B, ...].
        num_rows: rows of the weight.
        padding: a row whose gradient is zero by definition, or None.
    """

    def __init__(
        self, factors: Sequence[Tensor], roles: frozenset[str], numbers: Tensor, num_rows: int, padding: int | None
    ) -> None:
        super().__init__(factors, roles)
        (b,) = factors
        self.numbers, self.num_rows = numbers.reshape(len(b), -1), num_rows
        self.counted = torch.ones_like(self.numbers, dtype=b.dtype)
        if padding is not None:
            self.counted = (self.numbers != padding).to(b.dtype)

    def gradient(self) -> Parameters:
        """See `Contraction.gradient`."""
        return self.tangent(self.factors)

    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """Signals added up in the rows that were looked up."""
        (db,) = tangents
        size = db.shape[-1]
        rows = db.reshape(len(db), -1, size) * self.counted[..., None]
        weight = db.new_zeros(len(db), self.num_rows, size)
        return {"weight": weight.scatter_add_(1, self.numbers[..., None].expand_as(rows), rows)}

    def cotangent(self, cotangents: Mapping[str, Tensor]) -> list[Tensor]:
        """The cotangent's rows at the numbers."""
        (b,) = self.factors
        rows = self.numbers[..., None].expand(*self.numbers.shape, b.shape[-1])
        found = cotangents["weight"].gather(1, rows) * self.counted[..., None]
        return [found.reshape(b.shape)]

    def held_numbers(self) -> int:
        """See `Contraction.held_numbers`."""
        return self.counted.numel()
