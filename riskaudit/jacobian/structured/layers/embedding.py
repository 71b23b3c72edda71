"""Embeddings looked up by numbers that don't depend on the audited input's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from riskaudit.jacobian.structured.batch_axis import BatchAxis
from riskaudit.jacobian.structured.contraction import FormedContraction, Parameters
from riskaudit.jacobian.structured.recording import Recorder
from riskaudit.jacobian.structured.registry import UnsupportedLayer, register


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

    @override
    def gradient(self) -> Parameters:
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
        signals = cotangents["weight"].gather(1, rows) * self.counted[..., None]
        return [signals.reshape(b.shape)]

    @override
    def held_numbers(self) -> int:
        return self.counted.numel()


@register(F.embedding)
def _embedding(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None or scale_grad_by_freq:
        raise UnsupportedLayer("an embedding with max_norm or scale_grad_by_freq")
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    output = F.embedding(input, weight)
    if not recorder.depends_on_batch(any(size % recorder.num_samples == 0 for size in input.shape)):
        # The same rows for every sample, as positions are: the parameter, rearranged.
        return recorder.record_view(weight, lambda tensor: _rows(tensor, input, padding_idx), output)
    rows = len(weight)

    def make(factors: list[Tensor], roles: frozenset[str], axis: BatchAxis) -> EmbeddingContraction:
        numbers = axis.samples_first(input, len(factors[0]))
        return EmbeddingContraction(factors, roles, numbers, rows, padding_idx)

    return recorder.record_call("Embedding", [], output, make, weight=weight)


def _rows(weight: Tensor, numbers: Tensor, padding: int | None) -> Tensor:
    """Rows of a tangent [V, E]; the padding row has no gradient, so its tangent is zero."""
    rows = weight[numbers]
    return rows if padding is None else rows * (numbers != padding)[..., None]
