"""Operators that are written out in others: their kernels trust their arguments, or can't be differentiated twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


def _hardsigmoid(self: Tensor) -> Tensor:
    # torch has no derivative of hardsigmoid's derivative.
    result: Tensor = _aten.hardtanh.default(self + 3, 0, 6) / 6
    return result


def _unsafe_view(self: Tensor, size: Sequence[int]) -> Tensor:
    result: Tensor = _aten.reshape.default(self, size)
    return result


def _batch_norm_with_statistics(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, None, None]:
    # Unlike the internal form, the public one holds the weights' sizes against the input's.
    return (
        _aten.batch_norm.default(input, weight, bias, running_mean, running_var, False, momentum, eps, False),
        None,
        None,
    )


def _batch_norm_without_statistics(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, None, None]:
    if not training:
        raise ValueError("batch norm without statistics outside training")
    return _aten.batch_norm.default(input, weight, bias, None, None, True, momentum, eps, False), None, None


def _group_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[Tensor, None, None]:
    # The internal form reads N * C * HxW entries, however many there are.
    if input.ndim < 2 or tuple(input.shape[:2]) != (N, C) or input.numel() != N * C * HxW or group < 1:
        raise ValueError("group norm of other sizes than its input has")
    return _aten.group_norm.default(input, group, weight, bias, eps, False), None, None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale Q K^T + mask) V; fused kernels can't be differentiated twice."""
    if dropout_p or enable_gqa:
        raise ValueError("attention with dropout or groups of queries")
    scores = _aten.matmul.default(query, key.mT) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if masked else scores + attn_mask
    result: Tensor = _aten.matmul.default(torch.softmax(scores, -1), value)
    return result


def _attention_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, None]:
    return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale), None


def _linalg_norm(
    self: Tensor,
    ord: float | None = None,
    dim: list[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    # Norms of matrices other than the Frobenius norm aren't differentiable everywhere.
    if ord is not None and (self.ndim if dim is None else len(dim)) != 1:
        raise ValueError("a norm of matrices")
    order = 2 if ord is None else ord
    result: Tensor = _aten.linalg_vector_norm.default(self, order, dim, keepdim, dtype=dtype)
    return result


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the norm over all dimensions but ``dim``."""
    if not -1 <= dim < v.ndim:
        raise ValueError("weight norm of a dimension that there isn't")
    others = [axis for axis in range(v.ndim) if axis != dim]
    result: Tensor = v * (g / _aten.linalg_vector_norm.default(v, 2, others or None, True))
    return result


def _trilinear(
    i1: Tensor,
    i2: Tensor,
    i3: Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Tensor:
    """The sum of a product of three, each with new dimensions; the last argument is about speed alone."""
    product = _expanded(i1, expand1) * _expanded(i2, expand2) * _expanded(i3, expand3)
    return product.sum(list(sumdim)) if sumdim else product


def _expanded(factor: Tensor, dims: Sequence[int]) -> Tensor:
    for dim in sorted(dims):
        factor = factor.unsqueeze(dim)
    return factor


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    lengths = [_aten.linalg_vector_norm.default(x, 2, [dim], True).clamp_min(eps) for x in (x1, x2)]
    result: Tensor = ((x1 / lengths[0]) * (x2 / lengths[1])).sum(dim)
    return result


def _as_strided(self: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """The tensor itself where that is what it asks for: decomposed pools write such steps."""
    same = tuple(size) == tuple(self.shape) and len(stride) == self.ndim and storage_offset in (None, 0)
    if not same or any(
        expected != actual for n, expected, actual in zip(size, stride, self.stride(), strict=True) if n > 1
    ):
        raise ValueError("a view of raw storage")
    return self


REPLACEMENTS: Mapping[str, Callable[..., Any]] = {
    "aten.hardsigmoid.default": _hardsigmoid,
    "aten.hardswish.default": lambda self: self * _hardsigmoid(self),
    "aten._unsafe_view.default": _unsafe_view,
    "aten.as_strided.default": _as_strided,
    "aten.linalg_norm.default": _linalg_norm,
    "aten._weight_norm.default": _weight_norm,
    "aten._trilinear.default": _trilinear,
    "aten.cosine_similarity.default": _cosine_similarity,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm_with_statistics,
    "aten._native_batch_norm_legit.no_stats": _batch_norm_without_statistics,
    "aten.native_group_norm.default": _group_norm,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten._scaled_dot_product_flash_attention_for_cpu.default": _attention_on_cpu,
}
