"""Fully connected layers, whose gradient is b a^T summed over positions, and bilinear ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from riskaudit.jacobian.structured.contraction import (
    Contraction,
    FormedContraction,
    Parameters,
    flattened,
    positions,
    select_roles,
)
from riskaudit.jacobian.structured.recording import Recorder
from riskaudit.jacobian.structured.registry import UnsupportedLayer, register

aten = torch.ops.aten


def forms_weight(positions: int, inputs: int, outputs: int) -> bool:
    """Whether forming U [c, a] takes fewer multiplications than Gram matrices over T positions.

    4 T a c against 3 T^2 (a + c): docs/theory.md, section 5.
    """
    return 3 * positions * (inputs + outputs) > 4 * inputs * outputs


def outer(left: Tensor, right: Tensor) -> Tensor:
    """sum_t left_t right_t^T for [B, T, c] and [B, T, a]; returns [B, c, a]."""
    if left.shape[1] == 1:
        return left.mT * right
    return torch.bmm(left.mT, right)


@final
class LinearContraction(Contraction):
    """y = x W^T + bias on factors a [B, ..., a] and b [B, ..., c]; W is [c, a].

    Args:
        factors: a and b.
        roles: see `Contraction`.
        transposed: the parameter is W^T, [a, c].
    """

    def __init__(self, factors: Sequence[Tensor], roles: frozenset[str], transposed: bool = False) -> None:
        super().__init__([positions(factor) for factor in factors], roles)
        self.shapes, self.transposed = [factor.shape for factor in factors], transposed
        a, b = self.factors
        self._gram_of_inputs: Tensor | None = None
        self._gram_of_signals: Tensor | None = None
        if "weight" in roles and not forms_weight(a.shape[1], a.shape[2], b.shape[2]):
            self._gram_of_inputs = torch.bmm(a, a.mT)
            self._gram_of_signals = torch.bmm(b, b.mT)

    @override
    def gradient(self) -> Parameters:
        a, b = self.factors
        return select_roles(self.roles, weight=lambda: self._oriented(outer(b, a)), bias=lambda: b.sum(1))

    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """U = db a^T + b da^T."""
        a, b = self.factors
        da, db = (positions(tangent) for tangent in tangents)
        return select_roles(
            self.roles,
            weight=lambda: self._oriented(self._tangent_weight(a, b, da, db)),
            bias=lambda: db.sum(1),
        )

    def cotangent(self, cotangents: Mapping[str, Tensor]) -> list[Tensor]:
        """U^T b and U a."""
        a, b = self.factors
        inputs, signals = torch.zeros_like(a), torch.zeros_like(b)
        if "weight" in cotangents:
            weight = self._oriented(cotangents["weight"])
            inputs, signals = torch.bmm(b, weight), torch.bmm(a, weight.mT)
        if "bias" in cotangents:
            signals = signals + cotangents["bias"][:, None, :]
        return self._shaped(inputs, signals)

    def rotated_tangent(self, tangents: Sequence[Tensor]) -> Tensor:
        """At one position U = (|a| db + b (e . da)) e^T + b (da - e (e . da))^T with e = a / |a|: c + a numbers."""
        a, b = self.factors
        if a.shape[1] > 1 or "weight" not in self.roles:
            return flattened(self.tangent(tangents))
        da, db = (positions(tangent) for tangent in tangents)
        norm = a.norm(dim=-1, keepdim=True)
        along = (a * da).sum(-1, keepdim=True) / norm.clamp_min(torch.finfo(a.dtype).tiny)
        rest = da - a * (along / norm.clamp_min(torch.finfo(a.dtype).tiny))
        parts = [norm * db + along * b, b.norm(dim=-1, keepdim=True) * rest]
        return torch.cat([*parts, db] if "bias" in self.roles else parts, dim=-1).flatten(1)

    @override
    def held_numbers(self) -> int:
        return sum(gram.numel() for gram in (self._gram_of_inputs, self._gram_of_signals) if gram is not None)

    def gram(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        """Over positions where that is cheaper: b db^T a + b b^T da and a da^T b + a a^T db."""
        if self._gram_of_inputs is None or self._gram_of_signals is None:
            return self.cotangent(self.tangent(tangents))
        a, b = self.factors
        da, db = (positions(tangent) for tangent in tangents)
        if a.shape[1] == 1:
            inputs = (b * db).sum(-1, keepdim=True) * a + self._gram_of_signals * da
            signals = (a * da).sum(-1, keepdim=True) * b + self._gram_of_inputs * db
        else:
            inputs = torch.baddbmm(torch.bmm(self._gram_of_signals, da), torch.bmm(b, db.mT), a)
            signals = torch.baddbmm(torch.bmm(self._gram_of_inputs, db), torch.bmm(a, da.mT), b)
        if "bias" in self.roles:
            signals = signals + db.sum(1, keepdim=True)
        return self._shaped(inputs, signals)

    def _tangent_weight(self, a: Tensor, b: Tensor, da: Tensor, db: Tensor) -> Tensor:
        if a.shape[1] == 1:
            return torch.addcmul(db.mT * a, b.mT, da)
        return torch.baddbmm(torch.bmm(db.mT, a), b.mT, da)

    def _oriented(self, weight: Tensor) -> Tensor:
        """[B, c, a] as the parameter is, or back."""
        return weight.mT if self.transposed else weight

    def _shaped(self, inputs: Tensor, signals: Tensor) -> list[Tensor]:
        return [inputs.reshape(self.shapes[0]), signals.reshape(self.shapes[1])]


@register(F.linear, aten.linear.default)
def _linear(recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return recorder.record_call(
        "Linear",
        [input],
        F.linear(input, weight, bias),
        lambda factors, roles, axis: LinearContraction(factors, roles),
        weight=weight,
        bias=bias,
    )


@register(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
def _matmul(recorder: Recorder, input: Tensor, other: Tensor) -> Tensor:
    """x W with a parameter on the right: a linear layer without bias."""
    if recorder.source(other) is None or other.ndim != 2:
        raise UnsupportedLayer("matmul with a parameter that isn't a matrix on the right", recorder.name_of(input))
    return _transposed(recorder, input, other, None, torch.matmul(input, other))


@register(torch.addmm, Tensor.addmm, aten.addmm.default)
def _addmm(recorder: Recorder, input: Tensor, mat1: Tensor, mat2: Tensor) -> Tensor:
    """Bias + x W, as GPT-2's layers are; without their parameters in the right places it is something else."""
    if recorder.source(mat1) is not None or (recorder.source(input) is not None and input.ndim != 1):
        raise UnsupportedLayer("addmm with parameters that aren't a bias and a matrix on the right")
    return _transposed(recorder, mat1, mat2, input, torch.addmm(input, mat1, mat2))


def _transposed(recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> Tensor:
    """x W + bias with W [a, c]."""
    return recorder.record_call(
        "Linear",
        [input],
        output,
        lambda factors, roles, axis: LinearContraction(factors, roles, transposed=True),
        weight=weight,
        bias=bias,
    )


_OUTER = "btk,bti,btj->bkij"


@final
class BilinearContraction(FormedContraction):
    """y_k = a^T W_k e + bias_k.

    Factors a [B, ..., i], e [B, ..., j] and b [B, ..., k]; the weight is [k, i, j].
    """

    def __init__(self, factors: Sequence[Tensor], roles: frozenset[str]) -> None:
        super().__init__([positions(factor) for factor in factors], roles)
        self.shapes = [factor.shape for factor in factors]

    @override
    def gradient(self) -> Parameters:
        a, e, b = self.factors
        return select_roles(self.roles, weight=lambda: torch.einsum(_OUTER, b, a, e), bias=lambda: b.sum(1))

    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """One term per factor."""
        a, e, b = self.factors
        da, de, db = (positions(tangent) for tangent in tangents)
        terms = [(db, a, e), (b, da, e), (b, a, de)]
        return select_roles(
            self.roles,
            weight=lambda: torch.stack([torch.einsum(_OUTER, *term) for term in terms]).sum(0),
            bias=lambda: db.sum(1),
        )

    @override
    def cotangent(self, cotangents: Mapping[str, Tensor]) -> list[Tensor]:
        a, e, b = self.factors
        parts = [torch.zeros_like(factor) for factor in self.factors]
        if "weight" in cotangents:
            weight = cotangents["weight"]
            parts = [
                torch.einsum("bkij,btk,btj->bti", weight, b, e),
                torch.einsum("bkij,btk,bti->btj", weight, b, a),
                torch.einsum("bkij,bti,btj->btk", weight, a, e),
            ]
        if "bias" in cotangents:
            parts[2] = parts[2] + cotangents["bias"][:, None, :]
        return [factor.reshape(shape) for factor, shape in zip(parts, self.shapes, strict=True)]

    @override
    def held_numbers(self) -> int:
        return 0


@register(torch.bilinear, aten.bilinear.default)
def _bilinear(recorder: Recorder, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return recorder.record_call(
        "Bilinear",
        [input1, input2],
        torch.bilinear(input1, input2, weight, bias),
        lambda factors, roles, axis: BilinearContraction(factors, roles),
        weight=weight,
        bias=bias,
    )
