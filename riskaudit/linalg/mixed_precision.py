"""Products in single precision between vectors in double precision, and what the rounding of these products amounts to.

Iterations on such an operator keep their bases and recurrences in double precision, so that all their rounding is that
of the products: T belongs to an operator at most as far from H as these are. How far that is nobody knows beforehand. A
network that is sure of its answer leaves of p - y, the derivative of its loss, the difference of two numbers near 1:
on digits at a small trained network products are off by 1 to 2000 roundings of ||H||. But they are off by most where H
is large. So the first directions Q of a Krylov space, in which its largest eigenvalues lie, are multiplied in double
precision once and for all, and single precision is left with what is orthogonal to them:

    H' v = (1 - Q Q^T) [H] (1 - Q Q^T) v + H Q Q^T v + Q (H Q)^T (1 - Q Q^T) v,   [H] in single precision.

What that leaves is measured against double precision, at a vector that a power iteration brings near the largest
eigenvalue there and, since that need not be where products are worst, at what they were off by there. The larger of
both, times `SAFETY`, is what iterations allow for. It is an estimate, not a certificate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg.krylov.tridiagonal import SLACK_ROUNDINGS
from riskaudit.linalg.operators import LinearOperator

# Directions multiplied in double precision, steps of the power iteration, and vectors that rounding is measured at.
DIRECTIONS, POWER_STEPS, MEASURED = 4, 2, 2
# Products, in either precision, that this takes.
MEASURING_PRODUCTS = DIRECTIONS + POWER_STEPS + 2 * MEASURED
# How many times what was measured is allowed for, and how many roundings of ||H|| at least.
SAFETY, LEAST_ROUNDINGS = 4.0, 1.0


@final
@dataclass(frozen=True, eq=False)
class MeasuredRounding:
    """What products of B symmetric operators lose in single precision.

    Attributes:
        directions: Q, orthonormal columns [B, n, m], float64.
        products: H Q, [B, n, m], float64.
        relative: unit roundoff of the products left to single precision, [B], relative to ``largest``.
        largest: an eigenvalue of H, at least about, [B].
    """

    directions: Tensor
    products: Tensor
    relative: list[float]
    largest: list[float]

    @classmethod
    def of(cls, double: LinearOperator, single: LinearOperator, start: Tensor, random: Tensor) -> MeasuredRounding:
        """Of ``single``'s products.

        Args:
            double: H, symmetric, [B, n, n], float64.
            single: the same maps in single precision.
            start: of the Krylov space, [B, n]; any.
            random: standard normal vectors, independent of it, [B, n].
        """
        directions, products = start.new_empty(*start.shape, 0), start.new_empty(*start.shape, 0)
        vector = start
        for _ in range(DIRECTIONS):
            direction = _unit(_without(directions, vector))
            vector = double.matvec(direction)
            directions = torch.cat([directions, direction.unsqueeze(-1)], dim=-1)
            products = torch.cat([products, vector.unsqueeze(-1)], dim=-1)
        largest = torch.linalg.eigvalsh(directions.mT @ products)[:, -1]
        vector = random
        for _ in range(POWER_STEPS):
            vector = _without(directions, _single_product(single, _unit(_without(directions, vector))))
        norms = []
        for _ in range(MEASURED):
            tried = _unit(_without(directions, vector))
            vector = _without(directions, double.matvec(tried) - _single_product(single, tried))
            norms.append(vector.norm(dim=-1))
        allowed = (SAFETY * torch.stack(norms).amax(0) / largest).clamp_min(
            LEAST_ROUNDINGS * torch.finfo(single.dtype).eps
        )
        relative = allowed / (SLACK_ROUNDINGS * math.sqrt(double.shape[1]))
        return cls(directions, products, relative.tolist(), largest.tolist())

    def slack(self, index: int) -> float:
        """By how much rounding may move an operator, in units of H; not finite where products aren't."""
        return SLACK_ROUNDINGS * math.sqrt(self.directions.shape[1]) * self.relative[index] * self.largest[index]


@final
class MixedPrecisionOperator(LinearOperator):
    """H' of B symmetric maps, all vectors in double precision; of some maps the products too, which is H then.

    Args:
        double: H, [B, n, n], float64.
        single: the same maps in single precision.
        measured: the rounding of its products.
        resolved: whether a map's products are left to single precision, [B].
    """

    def __init__(
        self, double: LinearOperator, single: LinearOperator, measured: MeasuredRounding, resolved: Sequence[bool]
    ) -> None:
        self._sources, self._measured, self._resolved = (double, single), measured, resolved
        self._take(list(range(double.num_samples)))

    def _take(self, maps: list[int]) -> None:
        """Be the operator of these maps among the sources'; their parts are made when they are first needed."""
        double, _ = self._sources
        super().__init__(len(maps), double.shape, double.dtype, double.device)
        self._maps = maps
        self._parts: list[tuple[list[int], LinearOperator]] | None = None

    @property
    @override
    def psd(self) -> bool:
        return self._sources[0].psd

    @property
    @override
    def rounding(self) -> list[float]:
        exact = torch.finfo(self.dtype).eps
        return [self._measured.relative[place] if self._resolved[place] else exact for place in self._maps]

    @property
    def in_single(self) -> list[bool]:
        """Whether products are left to single precision, of each map."""
        return [self._resolved[place] for place in self._maps]

    @override
    def _matmat(self, columns: Tensor) -> Tensor:
        product = torch.empty_like(columns)
        for rows, part in self._made_parts():
            own = columns if len(rows) == len(columns) else columns[rows]
            product[rows] = part.matmat(own) if part.dtype == self.dtype else self._mixed(rows, part, own)
        return product

    def _mixed(self, rows: list[int], single: LinearOperator, columns: Tensor) -> Tensor:
        maps = [self._maps[row] for row in rows]
        directions, products = self._measured.directions[maps], self._measured.products[maps]
        along = directions.mT @ columns
        rest = columns - directions @ along
        left = _cast_product(single, rest)
        return left + products @ along + directions @ (products.mT @ rest - directions.mT @ left)

    def _made_parts(self) -> list[tuple[list[int], LinearOperator]]:
        """Rows and the operator that makes their products, for either precision."""
        if self._parts is None:
            self._parts = []
            for source, is_single in zip(self._sources, (False, True), strict=True):
                rows = [row for row, place in enumerate(self._maps) if self._resolved[place] == is_single]
                maps = [self._maps[row] for row in rows]
                if maps:
                    whole = maps == list(range(source.num_samples))
                    self._parts.append((rows, source if whole else source.select(maps)))
        return self._parts

    @override
    def select(self, indices: list[int]) -> MixedPrecisionOperator:
        part = MixedPrecisionOperator(*self._sources, self._measured, self._resolved)
        part._take([self._maps[index] for index in indices])
        return part


def _single_product(single: LinearOperator, vector: Tensor) -> Tensor:
    return _cast_product(single, vector.unsqueeze(-1)).squeeze(-1)


def _cast_product(single: LinearOperator, columns: Tensor) -> Tensor:
    """A product with columns [B, n, K] in double precision, scaled so that single precision can hold them."""
    scale = columns.abs().amax(dim=1, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return single.matmat((columns / scale).to(single.dtype)).to(columns) * scale


def _without(basis: Tensor, vector: Tensor) -> Tensor:
    """A vector [B, n] less its part in an orthonormal basis [B, n, m]."""
    for _ in range(2):
        vector = vector - (basis @ (basis.mT @ vector.unsqueeze(-1))).squeeze(-1)
    return vector


def _unit(vector: Tensor) -> Tensor:
    length = vector.norm(dim=-1, keepdim=True)
    return vector / torch.where(length > 0, length, torch.ones_like(length))
