"""What Lanczos iterations on K = L H L certify of the posterior under a correlated prior.

Traces come from probes (`WeightedTraces`). [derived] Norms ||L z|| of a solution z = (K + shift)^-1 b come from the
iteration's own approximation z_k, the iterate of conjugate gradients in exact arithmetic. Its steps never point
away from z (Hestenes and Stiefel, J. Res. NBS 49, 1952, theorem 6:3), hence ||z - z_k||^2 <= ||z||^2 - ||z_k||^2,
whose first term the Gauss-Radau rule bounds from above; and ||z - z_k|| <= ||residual|| / shift. The smaller of
these errors, times ||L||, is how far ||L z|| may lie from ||L z_k||. Rounding: T belongs to K + E with
||E|| <= slack, which moves z by at most slack ||z|| / shift.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from riskaudit.linalg import Interval, Quadrature, Tridiagonal, WeightedTraces, inverse_forms, lanczos
from riskaudit.priors import BoundPrior, WhitenedOperator
from riskaudit.sensitivity.brackets import EVENTS, BracketedNorms, Brackets
from riskaudit.sensitivity.probing import BRACKET_SHARE, DEFAULT_PRECISION, LOOK_EVERY, narrow_share, probe_all

# Leading eigenvectors of the prior's covariance that are worth an iteration each, at most, and the share of the
# prior's variance that each of them must have.
MOST_LEADING = 16
LEADING_SHARE = 0.01
# The relative error of a norm at which its iteration may end.
NORM_PRECISION = 0.01


class PosteriorBrackets:
    """Intervals for the posterior where not all eigenvalues are known and the prior is correlated.

    Args:
        brackets: of H itself; gives l_1's upper end, and counts nothing that is done here.
        prior: at the same samples.
        eps: the variance of the noise, at which traces are asked for.
    """

    def __init__(self, brackets: Brackets, prior: BoundPrior, eps: float) -> None:
        self.operator = WhitenedOperator(brackets.hessian, prior)
        self.prior, self.eps, self.matvecs = prior, eps, 0
        self._brackets, self._plan, self._clock = brackets, brackets.plan, brackets.clock
        precision = self._plan.precision
        self._precision = DEFAULT_PRECISION if precision is None else precision
        self._deflated: list[list[Tridiagonal]] = []

    @cached_property
    def largest(self) -> list[float]:
        """Upper ends of K's largest eigenvalues: ||L H L|| <= ||C|| l_1."""
        assert self._brackets.largest.high is not None
        return (self._brackets.largest.high.cpu() * self.prior.largest.cpu()).tolist()

    @cached_property
    def traces(self) -> list[WeightedTraces]:
        """What probes say of each sample; 2, 4, 8, ... until the revealed fraction is as narrow as wanted."""
        finished = narrow_share(self.eps, self._precision)
        deadline = self._clock.share(0.6)
        counts = [len(vectors) for _, vectors in self._leading]

        def enough(index: int, _: list[Tridiagonal]) -> int:
            return counts[index]

        self._deflated = probe_all(
            self.operator, self._leading_start, finished, enough, self._plan, self._clock.share(0.3), counts
        )
        found = probe_all(self.operator, self._probe, finished, self._probes_wanted, self._plan, deadline)
        self.matvecs += sum(each.num_products for tridiagonals in (*self._deflated, *found) for each in tridiagonals)
        return [self._traces(index, tridiagonals) for index, tridiagonals in enumerate(found)]

    @cached_property
    def _leading(self) -> list[tuple[list[float], Tensor]]:
        """Per sample the leading eigenvalues [m + 1] and eigenvectors [m, d] of C that stand out."""
        leading, samples = self.prior.leading, range(self.operator.num_samples)
        if leading is None:
            nothing = self.prior.mean.new_empty(0, self.operator.shape[1])
            return [([float(self.prior.largest[index])], nothing) for index in samples]
        found = [leading(index, min(MOST_LEADING, self._plan.max_probes)) for index in samples]
        kept = [
            sum(value > LEADING_SHARE * trace for value in values[:-1])
            for (values, _), trace in zip(found, self._weight_traces, strict=True)
        ]
        return [(values[: count + 1], vectors[:count]) for (values, vectors), count in zip(found, kept, strict=True)]

    @property
    def _weight_traces(self) -> list[float]:
        return [float(variance) * self.operator.shape[1] for variance in self.prior.variance]

    def _leading_start(self, index: int, number: int) -> Tensor:
        """L u_i = sqrt(eigenvalue) u_i, [d]."""
        values, vectors = self._leading[index]
        return math.sqrt(values[number]) * vectors[number]

    def _probe(self, index: int, number: int) -> Tensor:
        """L P z, [d]."""
        probe, vectors = self._brackets.draws(1 + number)[index], self._leading[index][1]
        for _ in range(2):
            probe = probe - (vectors @ probe) @ vectors
        return self.prior.select([index]).root(probe[None])[0]

    def _traces(self, index: int, tridiagonals: list[Tridiagonal]) -> WeightedTraces:
        done = self._deflated[index]
        return WeightedTraces(
            tridiagonals,
            # Which number of probes is the last depends on what they show.
            self._plan.failure / EVENTS / max(1.0, math.log2(self._plan.max_probes)),
            self._weight_traces[index],
            self._leading[index][0][len(done)],
            self.largest[index],
            done,
            sum(self._leading[index][0][: len(done)]),
        )

    def _probes_wanted(self, index: int, tridiagonals: list[Tridiagonal]) -> int:
        done, traces = len(tridiagonals), self._traces(index, tridiagonals)
        left = traces.remaining(self.eps)
        if left.high - left.low <= self._precision * (traces.weight_trace - left.value):
            return done
        lows, highs = Quadrature(tridiagonals).shares(self.eps)
        if float(np.mean(highs - lows)) > 2 * BRACKET_SHARE * self._precision * float(np.mean(highs)):
            # The quadrature is too coarse, which no further probe mends.
            return done
        return min(2 * done, self._plan.max_probes)

    def solution_norms(self, rhs: Tensor, shift: float) -> BracketedNorms:
        """Brackets of ||L (K + shift)^-1 rhs|| for rhs [B, d] and shift > 0."""
        if self._clock.limited:
            # Where time is limited the traces come before what matters less.
            _ = self.traces
        scales = rhs.abs().amax(dim=-1)
        usable = torch.isfinite(scales)
        scales = torch.where(usable & (scales > 0), scales, torch.ones_like(scales))
        start = torch.where(usable[:, None], rhs, torch.zeros_like(rhs)) / scales[:, None]
        # How much ||L|| exceeds what L does to a vector on average.
        stretch = (self.prior.largest / self.prior.variance).sqrt().tolist()
        aim = min(self._precision, NORM_PRECISION)

        def finished(index: int, tridiagonal: Tridiagonal) -> bool:
            if tridiagonal.num_products % LOOK_EVERY:
                return False
            solution = _Solution(tridiagonal, shift, self.largest[index])
            return bool(stretch[index] * solution.error <= aim * solution.norm)

        spaces = lanczos(self.operator, start, finished, self._plan.max_matvecs, self._clock.share(0.4))
        self.matvecs += sum(space.tridiagonal.num_products for space in spaces)
        solutions = [
            _Solution(space.tridiagonal, shift, largest) for space, largest in zip(spaces, self.largest, strict=True)
        ]
        approximations = [
            torch.from_numpy(solution.coefficients).to(rhs) @ space.basis[: len(solution.coefficients)]
            for solution, space in zip(solutions, spaces, strict=True)
        ]
        norms = self.prior.root(torch.stack(approximations)).double().norm(dim=-1).tolist()
        intervals = []
        for solution, norm, root_norm, scale, known in zip(
            solutions, norms, self.prior.largest.sqrt().tolist(), scales.tolist(), usable.tolist(), strict=True
        ):
            error = root_norm * solution.error
            low, high = scale * max(0.0, norm - error), scale * min(norm + error, root_norm * solution.most)
            intervals.append(
                Interval(min(max(scale * norm, low), high), low, high) if known else Interval(0.0, 0.0, math.inf)
            )
        return BracketedNorms(intervals, [space.tridiagonal.num_products for space in spaces])


class _Solution:
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
