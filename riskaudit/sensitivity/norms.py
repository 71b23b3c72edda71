"""Intervals of ||L z|| for the solution z = (K + shift)^-1 b at B samples, from a Lanczos iteration that starts at b.

Where L = 1 and the shift is positive, the iteration is preconditioned by the space that l_1 was read off
(`riskaudit.linalg.krylov.preconditioned`): the energy b^T A^-1 b is bracketed by the Gauss and Gauss-Radau rules, and
||z - z_k||^2 is at most what the iterate lacks of it, over the shift. Without a shift the squared norm is a quadratic
form of H, which those rules bracket where a lower end of the spectrum is known; else only a lower end is asked for,
which the space at hand has, whatever b is.

[derived] For any other L the iteration's own approximation z_k is taken, the iterate of conjugate gradients in exact
arithmetic. Its steps never point away from z (Hestenes and Stiefel, J. Res. NBS 49, 1952, theorem 6:3), hence
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

from riskaudit.linalg import (
    Interval,
    KrylovSpace,
    LinearOperator,
    PreconditionedOperator,
    RitzPreconditioner,
    Tridiagonal,
    by_block,
    inverse_forms,
    lanczos,
    least_solution_norm,
)
from riskaudit.priors import BoundPrior
from riskaudit.sensitivity.ends import SpectrumEnds
from riskaudit.sensitivity.probing import LOOK_EVERY

# How far below its value, relative to it, the lower end of a norm may lie when its iteration ends: the end that claims
# of an attacker's error rest on. The upper one takes several times the products, so it is asked for less.
NORM_PRECISION, WIDEST_FACTOR = 0.1, 9.0
# The relative error of z_k where L isn't 1: L may shorten z_k more than its error.
ITERATE_PRECISION = 0.01
# An interval whose ends' ratio hasn't come down to this share of itself within so many products won't any more.
PROGRESS, PATIENCE = 0.9, 16
# Keeps quotients finite.
TINY = 1e-300
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
    precision: float = NORM_PRECISION,
    enough: Sequence[float] | None = None,
    most: Sequence[float] | None = None,
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
        precision: relative width at which an interval is narrow enough, where no narrower one is asked for.
        enough: of every sample, a length: where the squares of a norm's ends differ by less than its square, that is
            narrow enough as well; [B] (of an upload's samples, that of the first counts), or None.
        most: upper ends that are known beforehand where L = 1 and an upload has one sample, [B], or None.
    """
    # Squares of enormous noise would overflow; what isn't finite can't be bracketed.
    scales = rhs.abs().amax(dim=-1)
    usable = torch.isfinite(scales)
    scales = torch.where(usable & (scales > 0), scales, torch.ones_like(scales))
    start = torch.where(usable[:, None], rhs, torch.zeros_like(rhs)) / scales[:, None]
    precision = min(ends.precision, precision)
    if num_blocks > 1 and not all(shift > 0 for shift in shifts):
        # Nothing but a lower end of the spectrum would bound them.
        return BracketedNorms([_NOTHING] * (num_blocks * len(shifts)), [0] * len(shifts) * num_blocks)
    lows: list[Interval] | None = None
    rule: _Rule = _Iterates(prior, largest, shifts, min(precision, ITERATE_PRECISION), num_blocks)
    if prior.isotropic and num_blocks == 1:
        if all(0 < shift < math.inf for shift in shifts):
            lengths, known = (
                None if each is None else [length / scale for length, scale in zip(each, scales.tolist(), strict=True)]
                for each in (enough, most)
            )
            rule = _Preconditioned(operator, ends, shifts, precision, start, lengths, known)
        elif not any(ends.least):
            return _lower_ends(ends, start, scales, usable)
        else:
            rule = _Forms(ends, shifts, precision)
            lows = _lower_ends(ends, start, scales, usable).intervals
    spaces = lanczos(*rule.problem(operator, start), rule.finished, ends.plan.max_matvecs, ends.clock.share(0.4))
    factors: list[float] = scales.repeat_interleave(num_blocks).tolist()
    finite = usable.repeat_interleave(num_blocks).tolist()
    intervals = [
        norm.map(factor.__mul__) if is_finite else _NOTHING
        for norm, factor, is_finite in zip(rule.norms(spaces), factors, finite, strict=True)
    ]
    if lows is not None:
        # What is known of a sample mustn't depend on the company that it keeps.
        intervals = [low if math.isinf(norm.high) else norm for norm, low in zip(intervals, lows, strict=True)]
    return BracketedNorms(intervals, [space.tridiagonal.num_products for space in spaces for _ in range(num_blocks)])


def _lower_ends(ends: SpectrumEnds, start: Tensor, scales: Tensor, usable: Tensor) -> BracketedNorms:
    """Of ||H^-1 b||, which nothing bounds from above, from the spaces at hand: no product is made."""
    intervals = []
    for row, (space, scale, known) in enumerate(zip(ends.spaces, scales.tolist(), usable.tolist(), strict=True)):
        tridiagonal, low = space.tridiagonal, 0.0
        if known and tridiagonal.num_products:
            basis = space.basis[: tridiagonal.num_products]
            along = (basis @ start[row]).double().cpu().numpy()
            low = scale * least_solution_norm(tridiagonal, along, tridiagonal.slack())
        intervals.append(Interval(low, low, math.inf))
    return BracketedNorms(intervals, [0] * len(intervals))


class _Rule(ABC):
    """How the norms are read off the iterations."""

    def problem(self, operator: LinearOperator, start: Tensor) -> tuple[LinearOperator, Tensor]:
        """What the iteration is of, and where it starts, [B, d]."""
        return operator, start

    @abstractmethod
    def finished(self, index: int, space: KrylovSpace) -> bool:
        """Whether a sample's interval is narrow enough."""

    @abstractmethod
    def norms(self, spaces: Sequence[KrylovSpace]) -> list[Interval]:
        """||L z|| per sample."""


@final
class _Preconditioned(_Rule):
    """||z_k|| of the preconditioned iteration, for L = 1 and positive shifts."""

    def __init__(
        self,
        operator: LinearOperator,
        ends: SpectrumEnds,
        shifts: Sequence[float],
        precision: float,
        start: Tensor,
        enough: Sequence[float] | None,
        most: Sequence[float] | None = None,
    ) -> None:
        self.shifts, self.precision, self.enough = shifts, precision, enough
        self.most = [math.inf] * len(shifts) if most is None else most
        self.both_ends = ends.plan.precision is not None
        # Of each sample the narrowest interval so far, by the ratio of its ends, and the products that it took.
        self._narrowest = [(math.inf, 0)] * len(shifts)
        scales = [space.tridiagonal.largest for space in ends.spaces]
        self.preconditioner = RitzPreconditioner(ends.spaces, shifts, scales, start)
        self.operator = PreconditionedOperator(operator, self.preconditioner, shifts, list(range(len(shifts))))

    @override
    def problem(self, operator: LinearOperator, start: Tensor) -> tuple[LinearOperator, Tensor]:
        return self.operator, self.preconditioner.power(start.unsqueeze(-1), -0.5).squeeze(-1)

    def _interval(self, index: int, tridiagonal: Tridiagonal, basis: Tensor, least: float) -> Interval:
        count = tridiagonal.num_products
        if not count:
            norm = tridiagonal.start_norm
            return Interval(0.0, 0.0, math.inf if norm > 0 else 0.0)
        scale = self.preconditioner.scales[index]
        values, vectors, _ = tridiagonal.ritz()
        coefficients = tridiagonal.start_norm * (vectors @ (vectors[0] / np.maximum(values, max(least, TINY))))
        solution = torch.from_numpy(coefficients).to(basis) @ basis[:count]
        norm = float(self._power(index, solution, -0.5).double().norm())
        forms = inverse_forms(tridiagonal, 0.0, least, scale)
        error = math.sqrt(max(0.0, float(forms.first_high - forms.first_low)) / self.shifts[index])
        if not tridiagonal.exhausted:
            # The residual is a multiple of P^(1/2) q_{k+1}.
            length = float(self._power(index, basis[count], 0.5).double().norm())
            residual = float(tridiagonal.off_diagonal[-1]) * abs(float(coefficients[-1])) * length
            blur = self._slack(index, tridiagonal) * float(np.linalg.norm(coefficients))
            error = min(error, (residual + blur) / self.shifts[index])
        low, high = max(0.0, norm - error), min(norm + error, math.sqrt(forms.first_high / self.shifts[index]))
        return Interval(min(max(norm, low), high), low, high)

    def _power(self, index: int, vector: Tensor, exponent: float) -> Tensor:
        return self.preconditioner.power(vector[None, :, None], exponent, [index])[0, :, 0]

    @override
    def finished(self, index: int, space: KrylovSpace) -> bool:
        if space.tridiagonal.num_products % LOOK_EVERY:
            return False
        # No product narrows what rounding leaves open.
        exact = KrylovSpace(space.tridiagonal.as_if_double(), space.basis)
        found = self._ends(index, exact, self.preconditioner.least_if_double[index])
        if self._stagnates(index, found, space.tridiagonal.num_products):
            return True
        enough = 0.0 if self.enough is None else self.enough[index]
        if math.isfinite(enough) and (found.high - found.low) * (found.high + found.low) <= enough * enough:
            return True
        if self.both_ends:
            return found.high - found.low <= self.precision * found.value
        return found.low >= (1 - self.precision) * found.value and found.high <= WIDEST_FACTOR * found.low

    @override
    def norms(self, spaces: Sequence[KrylovSpace]) -> list[Interval]:
        least = self.preconditioner.least
        return [self._ends(index, space, least[index]) for index, space in enumerate(spaces)]

    def _stagnates(self, index: int, found: Interval, products: int) -> bool:
        """Whether the interval has hardly narrowed for a while, as happens where rounding is all that is left."""
        ratio, (narrowest, since) = found.high / max(found.low, TINY), self._narrowest[index]
        if ratio < PROGRESS * narrowest:
            self._narrowest[index] = ratio, products
            return False
        return products - since >= PATIENCE

    def _ends(self, index: int, space: KrylovSpace, least: float) -> Interval:
        interval = self._interval(index, space.tridiagonal, space.basis, least)
        high = max(interval.low, min(interval.high, self.most[index]))
        low = min(max(interval.low, self._least(index, space)), high)
        return Interval(min(high, max(low, interval.value)), low, high)

    def _least(self, index: int, space: KrylovSpace) -> float:
        """A lower end that holds without an upper one of the error."""
        tridiagonal, preconditioner = space.tridiagonal, self.preconditioner
        count = tridiagonal.num_products
        if not count or tridiagonal.exhausted:
            return 0.0
        rooted = preconditioner.power(space.basis.mT[None], 0.5, [index])[0].double()
        along = np.zeros(count)
        along[0] = tridiagonal.start_norm
        gram = (rooted.mT @ rooted).cpu().numpy()
        return least_solution_norm(tridiagonal, along, self._slack(index, tridiagonal), gram)

    def _slack(self, index: int, tridiagonal: Tridiagonal) -> float:
        """By how much rounding may have moved A P^(-1/2) times a unit vector."""
        preconditioner = self.preconditioner
        return math.sqrt(preconditioner.largest[index]) * tridiagonal.slack(preconditioner.scales[index])


@final
class _Forms(_Rule):
    """b^T (H + shift)^-2 b, for L = 1 and a spectrum with a lower end."""

    def __init__(self, ends: SpectrumEnds, shifts: Sequence[float], precision: float) -> None:
        self.least, self.shifts, self.precision = ends.least, shifts, precision
        self.ritz = [space.tridiagonal.largest for space in ends.spaces]

    def _ends(self, index: int, tridiagonal: Tridiagonal) -> tuple[float, float]:
        forms = inverse_forms(tridiagonal, self.shifts[index], self.least[index], self.ritz[index])
        return math.sqrt(forms.second_low), math.sqrt(forms.second_high)

    @override
    def finished(self, index: int, space: KrylovSpace) -> bool:
        if space.tridiagonal.num_products % LOOK_EVERY:
            return False
        # No product narrows what rounding leaves open.
        low, high = self._ends(index, space.tridiagonal.as_if_double())
        return math.isinf(high) or high <= (1 + self.precision) * low

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
    def finished(self, index: int, space: KrylovSpace) -> bool:
        if space.tridiagonal.num_products % LOOK_EVERY:
            return False
        iterate = self._solution(index, space.tridiagonal.as_if_double())
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
        norms = by_block(rooted, self.num_blocks).norm(dim=-1).tolist()
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
