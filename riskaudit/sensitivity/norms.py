"""Intervals of ||L z|| for the solution z = (K + shift)^-1 b at B samples, from a Lanczos iteration that starts at b.

Where L = 1 the squared norm is a quadratic form of K, which Gauss and Gauss-Radau rules bracket. [derived] For any
other L the iteration's own approximation z_k is taken, the iterate of conjugate gradients in exact arithmetic. Its
steps never point away from z (Hestenes and Stiefel, J. Res. NBS 49, 1952, theorem 6:3), hence
||z - z_k||^2 <= ||z||^2 - ||z_k||^2, whose first term the Gauss-Radau rule bounds from above; and
||z - z_k|| <= ||residual|| / shift. The smaller of these errors, times ||L||, is how far ||L z|| may lie from
||L z_k||. Rounding: T belongs to K + E with ||E|| <= slack, which moves z by at most slack ||z|| / shift.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg import Interval, KrylovSpace, LinearOperator, Tridiagonal, inverse_forms, lanczos
from riskaudit.priors import BoundPrior
from riskaudit.sensitivity.ends import SpectrumEnds
from riskaudit.sensitivity.probing import LOOK_EVERY

# The relative error of a norm at which its iteration may end.
NORM_PRECISION = 0.01
# Without an upper end, a lower one that grew by less than this since the last look has settled.
SETTLED_GROWTH = 0.01
_NOTHING = Interval(0.0, 0.0, math.inf)


@dataclass(frozen=True)
class BracketedNorms:
    """||L (K + shift)^-1 b|| per sample, with the products that its upload took."""

    intervals: list[Interval]
    matvecs: list[int]


def solution_norms(
    operator: LinearOperator,
    prior: BoundPrior,
    ends: SpectrumEnds,
    largest: Sequence[float],
    rhs: Tensor,
    shifts: Sequence[float],
    num_blocks: int = 1,
) -> BracketedNorms:
    """Brackets of ||L (K + shift)^-1 b||, or of each of its blocks; an upper end may be infinite.

    Args:
        operator: K, [B, d, d].
        prior: whose root is L, in its own units.
        ends: of H's spectrum, with the limits.
        largest: upper ends of K's largest eigenvalues, [B].
        rhs: b, [B, d].
        shifts: >= 0, above 0 unless L = 1 and there is one block, [B].
        num_blocks: n, equal parts of b that are asked for one by one.
    """
    # Squares of enormous noise would overflow; what isn't finite can't be bracketed.
    scales = rhs.abs().amax(dim=-1)
    usable = torch.isfinite(scales)
    scales = torch.where(usable & (scales > 0), scales, torch.ones_like(scales))
    start = torch.where(usable[:, None], rhs, torch.zeros_like(rhs)) / scales[:, None]
    precision = min(ends.precision, NORM_PRECISION)
    if num_blocks > 1 and not all(shift > 0 for shift in shifts):
        # Nothing but a lower end of the spectrum would bound them.
        return BracketedNorms([_NOTHING] * (num_blocks * len(shifts)), [0] * len(shifts) * num_blocks)
    rule: _Rule = _Iterates(prior, largest, shifts, precision, num_blocks)
    if prior.isotropic and num_blocks == 1:
        rule = _Forms(ends, shifts, precision)
    spaces = lanczos(operator, start, rule.finished, ends.plan.max_matvecs, ends.clock.share(0.4))
    factors: list[float] = scales.repeat_interleave(num_blocks).tolist()
    finite = usable.repeat_interleave(num_blocks).tolist()
    intervals = [
        norm.map(factor.__mul__) if is_finite else _NOTHING
        for norm, factor, is_finite in zip(rule.norms(spaces), factors, finite, strict=True)
    ]
    return BracketedNorms(intervals, [space.tridiagonal.num_products for space in spaces for _ in range(num_blocks)])


class _Rule(ABC):
    """How the norms are read off the iterations."""

    @abstractmethod
    def finished(self, index: int, tridiagonal: Tridiagonal) -> bool:
        """Whether a sample's interval is narrow enough."""

    @abstractmethod
    def norms(self, spaces: Sequence[KrylovSpace]) -> list[Interval]:
        """||L z|| per sample."""


@final
class _Forms(_Rule):
    """b^T (H + shift)^-2 b, for L = 1."""

    def __init__(self, ends: SpectrumEnds, shifts: Sequence[float], precision: float) -> None:
        self.least, self.shifts, self.precision = ends.least, shifts, precision
        self.ritz = [space.tridiagonal.largest for space in ends.spaces]
        self.lows = [0.0] * len(shifts)

    def _ends(self, index: int, tridiagonal: Tridiagonal) -> tuple[float, float]:
        forms = inverse_forms(tridiagonal, self.shifts[index], self.least[index], self.ritz[index])
        return math.sqrt(forms.second_low), math.sqrt(forms.second_high)

    @override
    def finished(self, index: int, tridiagonal: Tridiagonal) -> bool:
        if tridiagonal.num_products % LOOK_EVERY:
            return False
        # No product narrows what rounding leaves open.
        low, high = self._ends(index, tridiagonal.as_if_double())
        if math.isinf(high):
            settled = low <= (1 + SETTLED_GROWTH) * self.lows[index]
            self.lows[index] = low
            return settled
        return high <= (1 + self.precision) * low

    @override
    def norms(self, spaces: Sequence[KrylovSpace]) -> list[Interval]:
        ends = [self._ends(index, space.tridiagonal) for index, space in enumerate(spaces)]
        return [Interval(low if math.isinf(high) else math.sqrt(low * high), low, high) for low, high in ends]


@final
class _Iterates(_Rule):
    """||L z_k|| and how far ||L z|| may lie from it."""

    def __init__(
        self,
        prior: BoundPrior,
        largest: Sequence[float],
        shifts: Sequence[float],
        precision: float,
        num_blocks: int = 1,
    ) -> None:
        self.prior, self.largest, self.shifts, self.precision = prior, largest, shifts, precision
        self.root_norms, self.num_blocks = prior.largest.sqrt().tolist(), num_blocks

    def _solution(self, index: int, tridiagonal: Tridiagonal) -> _Iterate:
        return _Iterate(tridiagonal, self.shifts[index], self.largest[index])

    @override
    def finished(self, index: int, tridiagonal: Tridiagonal) -> bool:
        if tridiagonal.num_products % LOOK_EVERY:
            return False
        iterate = self._solution(index, tridiagonal.as_if_double())
        # L changes the length of a vector by 1 on average, and by ||L|| at most.
        wanted = self.precision * iterate.norm / math.sqrt(self.num_blocks)
        return bool(self.root_norms[index] * iterate.error <= wanted)

    @override
    def norms(self, spaces: Sequence[KrylovSpace]) -> list[Interval]:
        iterates = [self._solution(index, space.tridiagonal) for index, space in enumerate(spaces)]
        vectors = [
            torch.from_numpy(iterate.coefficients).to(space.basis) @ space.basis[: len(iterate.coefficients)]
            for iterate, space in zip(iterates, spaces, strict=True)
        ]
        rooted = self.prior.root(torch.stack(vectors)).double()
        norms = rooted.reshape(len(rooted), self.num_blocks, -1).norm(dim=-1).tolist()
        intervals = []
        for iterate, blocks, root_norm in zip(iterates, norms, self.root_norms, strict=True):
            error = root_norm * iterate.error
            for norm in blocks:
                low, high = max(0.0, norm - error), min(norm + error, root_norm * iterate.most)
                intervals.append(Interval(min(max(norm, low), high), low, high))
        return intervals


class _Iterate:
    """The approximation of z = (K + shift)^-1 b in one Krylov space that started at b.

    Attributes:
        coefficients: of z_k in the space's basis, [k], float64.
        norm: ||z_k||.
        error: an upper end of ||z - z_k||.
        most: an upper end of ||z||.
    """

    def __init__(self, tridiagonal: Tridiagonal, shift: float, largest: float) -> None:
        scale = largest if math.isfinite(largest) else 0.0
        values, vectors, _ = tridiagonal.ritz()
        start = tridiagonal.start_norm
        along = start * vectors[0] / (np.maximum(values, 0.0) + shift) if len(values) else np.zeros(0)
        self.coefficients = vectors @ along if len(values) else np.zeros(0)
        self.norm = float(np.linalg.norm(along))
        self.most = math.sqrt(float(inverse_forms(tridiagonal, shift, largest=scale).second_high))
        beyond = math.sqrt(max(0.0, self.most**2 - self.norm**2))
        residual = start
        if len(values):
            residual = float(tridiagonal.off_diagonal[-1]) * abs(float(self.coefficients[-1]))
        # The residual's own rounding is part of the slack, and so is what cutting off negative Ritz values does.
        rounding = 2 * tridiagonal.slack(scale) / shift * self.most
        self.error = min(beyond, residual / shift) + rounding
