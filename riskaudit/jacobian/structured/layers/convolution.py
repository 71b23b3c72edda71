"""Convolutions in one to three dimensions: a linear layer on the windows of its input, at every place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from riskaudit.jacobian.structured.layers.contraction import Contraction, Parameters, flattened, only
from riskaudit.jacobian.structured.layers.linear import forms_weight
from riskaudit.jacobian.structured.layers.windows import Windows


@final
class ConvolutionContraction(Contraction):
    """Factors a [B, C, *size] and b [B, c, *places]; the weight is [c, C / groups, *kernel].

    Where R images belong to a sample they are [B, R, C, *size] and [B, R, c, *places]. Inside, windows are
    columns [B * groups, C / groups * prod(kernel), T], T the places in all images of a sample.

    Args:
        factors: a and b; a may also come as its columns [B, C * prod(kernel), T] or [B, R, ...], with
            ``windows`` None.
        roles: see `Contraction`.
        weight_shape: see above.
        windows: the geometry.
        groups: of channels.
    """

    def __init__(
        self,
        factors: Sequence[Tensor],
        roles: frozenset[str],
        weight_shape: torch.Size,
        windows: Windows | None,
        groups: int,
    ) -> None:
        super().__init__(factors, roles)
        self.windows, self.groups, self.weight_shape = windows, groups, weight_shape
        a, b = factors
        self.repeats = a.shape[1] if b.ndim > len(weight_shape) else 1
        self.b = self._signals(b)
        self._gram_of_inputs: Tensor | None = None
        self._gram_of_signals: Tensor | None = None
        if "weight" in roles:
            self.columns = self._columns(a)
            if not forms_weight(self.b.shape[2], self.columns.shape[1], self.b.shape[1]):
                self._gram_of_inputs = torch.bmm(self.columns.mT, self.columns)
                self._gram_of_signals = torch.bmm(self.b.mT, self.b)

    def gradient(self) -> Parameters:
        """See `Contraction.gradient`."""
        return only(
            self.roles,
            weight=lambda: self._weight(torch.bmm(self.b, self.columns.mT)),
            bias=lambda: self._bias(self.b),
        )

    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """U = db a^T + b da^T on columns."""
        da, db = tangents[0], self._signals(tangents[1])
        return only(
            self.roles,
            weight=lambda: self._weight(torch.bmm(db, self.columns.mT).baddbmm_(self.b, self._columns(da).mT)),
            bias=lambda: self._bias(db),
        )

    def cotangent(self, cotangents: Mapping[str, Tensor]) -> list[Tensor]:
        """U^T b, put back in place, and U a."""
        inputs, signals = torch.zeros_like(self.factors[0]), torch.zeros_like(self.b)
        if "weight" in cotangents:
            weight = cotangents["weight"].reshape(-1, self.b.shape[1], self.columns.shape[1])
            inputs = self._images(torch.bmm(weight.mT, self.b))
            signals = torch.bmm(weight, self.columns)
        return [inputs, self._as_signals(signals, cotangents.get("bias"))]

    def rotated_tangent(self, tangents: Sequence[Tensor]) -> Tensor:
        """See `Contraction.rotated_tangent`."""
        return flattened(self.tangent(tangents))

    def held_numbers(self) -> int:
        """See `Contraction.held_numbers`."""
        held = [self._gram_of_inputs, self._gram_of_signals]
        if "weight" in self.roles and self.windows is not None:
            held.append(self.columns)
        return sum(tensor.numel() for tensor in held if tensor is not None)

    def gram(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        """Over positions where that is cheaper: a db^T b + da b^T b and b da^T a + db a^T a."""
        if self._gram_of_inputs is None or self._gram_of_signals is None:
            return self.cotangent(self.tangent(tangents))
        columns, signals = self._columns(tangents[0]), self._signals(tangents[1])
        inputs = torch.bmm(columns, self._gram_of_signals)
        inputs.baddbmm_(self.columns, torch.bmm(signals.mT, self.b))
        back = torch.bmm(signals, self._gram_of_inputs)
        back.baddbmm_(self.b, torch.bmm(columns.mT, self.columns))
        bias = self._bias(signals) if "bias" in self.roles else None
        return [self._images(inputs), self._as_signals(back, bias)]

    def _columns(self, images: Tensor) -> Tensor:
        images = self._one_by_one(images)
        columns = images if self.windows is None else self.windows.columns(images)
        columns = self._joined(columns)
        return columns.reshape(-1, columns.shape[1] // self.groups, columns.shape[2])

    def _images(self, columns: Tensor) -> Tensor:
        shape = self.factors[0].shape
        columns = self._cut(columns.reshape(shape[0], -1, columns.shape[2]))
        if self.windows is not None:
            columns = self.windows.images(columns, self._one_by_one(self.factors[0]).shape)
        return columns.reshape(shape)

    def _signals(self, signals: Tensor) -> Tensor:
        signals = self._joined(self._one_by_one(signals).flatten(2))
        return signals.reshape(signals.shape[0] * self.groups, signals.shape[1] // self.groups, -1)

    def _one_by_one(self, factor: Tensor) -> Tensor:
        """[B, R, ...] as [B * R, ...]."""
        return factor if self.repeats == 1 else factor.flatten(0, 1)

    def _joined(self, columns: Tensor) -> Tensor:
        """[B * R, n, T] as [B, n, R * T]."""
        if self.repeats == 1:
            return columns
        return torch.unflatten(columns, 0, (-1, self.repeats)).movedim(1, 2).flatten(2)

    def _cut(self, columns: Tensor) -> Tensor:
        """Undo `_joined`."""
        if self.repeats == 1:
            return columns
        return torch.unflatten(columns, 2, (self.repeats, -1)).movedim(2, 1).flatten(0, 1)

    def _weight(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1, *self.weight_shape)

    def _bias(self, signals: Tensor) -> Tensor:
        """Signals [B * groups, c / groups, T] added up over places, [B, c]."""
        return signals.sum(-1).reshape(len(self.factors[1]), -1)

    def _as_signals(self, signals: Tensor, bias: Tensor | None) -> Tensor:
        """Undo `_signals`, and add the bias's part at every place."""
        b = self.factors[1]
        signals = signals.reshape(len(b), -1, signals.shape[2])
        if bias is not None:
            signals = signals + bias[..., None]
        return self._cut(signals).reshape(b.shape)
