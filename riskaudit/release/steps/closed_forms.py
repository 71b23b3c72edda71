"""Derivatives of single steps at B vectors [B, P], as what products with J^T J can make use of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """diag(mask): mask is 0 or 1, [P] for all samples or [B, P]."""

    mask: Tensor


@dataclass(frozen=True)
class Projected:
    """scale (I - unit unit^T): scale [B]; unit [B, P] is a unit vector, or 0 where nothing is projected out."""

    scale: Tensor
    unit: Tensor


ClosedForm: TypeAlias = Kept | Projected
