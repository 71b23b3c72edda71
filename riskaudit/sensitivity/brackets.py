"""What Lanczos iterations certify of H at B samples: its ends, norms of solutions, traces of functions.

Everything is bracketed, nothing is solved: docs/theory.md, section 4. One iteration from a random start gives l_1
(and deflates the probes), one from each right-hand side gives the norm of a solution, and one from each
probe gives traces. Probabilities of failure are divided over the events of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from riskaudit.linalg import (
    Interval,
    KrylovSpace,
    Lanczos,
    LinearOperator,
    Quadrature,
    Solution,
    TraceProbes,
    Tridiagonal,
    deflatable,
    effective_dimension_bounds,
    inverse_forms,
    lanczos,
    lower_end,
)
from riskaudit.linalg.krylov.tridiagonal import Array
from riskaudit.linalg.operators import DowndatedOperator
from riskaudit.sensitivity.plan import Clock, Plan
from riskaudit.sensitivity.probing import BRACKET_SHARE, DEFAULT_PRECISION, LOOK_EVERY, narrow_share, probe_all

# Ends that hold with probability only: l_1 above, l_d below, the same of H - v v^T above, traces of four functions.
EVENTS = 7
# Without an upper end, a lower one that grew by less than this since the last look has settled.
SETTLED_GROWTH = 0.01
# An end of the spectrum comes so near with a product or two more that this is always worth them.
END_PRECISION = 0.05


@dataclass(frozen=True)
class BracketedNorms:
    """||(H + shift)^-1 b|| per sample, with the products that each took."""

    intervals: list[Interval]
    matvecs: list[int]


@dataclass(frozen=True, eq=False)
class SampleTraces:
    """Traces of functions of one sample's H; holds no tensor and no graph.

    Attributes:
        probes: random probes.
        ritz_values: of the iteration that l_1 was read off, ascending, [k].
        dimension: d.
        largest: certified upper end of l_1.
    """

    probes: TraceProbes
    ritz_values: Array
    dimension: int
    largest: float

    @cached_property
    def trace(self) -> Interval:
        """tr H."""
        return self.probes.trace()

    def effective_dimension(self, eps: float) -> Interval:
        """d_eff = sum_i l_i / (l_i + eps): what the probes and the Ritz values say together."""
        probed = self.probes.effective_dimension(eps)
        low, high = effective_dimension_bounds(
            self.ritz_values, self.dimension, self.trace.high, eps, self.probes.slack
        )
        low, high = max(low, probed.low), min(high, probed.high)
        return Interval(min(max(probed.value, low), high), low, max(low, high))


class Brackets:
    """Intervals for everything that proxies ask of H, when not all of its eigenvalues are known.

    Args:
        hessian: H, [B, d, d].
        plan: limits; its ``failure`` is divided over `EVENTS`.
        eps: the shift at which traces are asked for.
        least: gives sure lower ends of l_d, [B].
        draw: draw(i) for i = 0, 1, ... gives standard normal vectors [B, d], independent of each other.
        clock: the time there is.
    """

    def __init__(
        self,
        hessian: LinearOperator,
        plan: Plan,
        eps: float,
        least: Callable[[], Tensor],
        draw: Callable[[int], Tensor],
        clock: Clock,
    ) -> None:
        self.hessian, self.plan, self.eps, self.clock = hessian, plan, eps, clock
        self.matvecs = 0
        self._sure_least = least
        self._draw = draw
        self._drawn: dict[int, Tensor] = {}
        self._failure = plan.failure / EVENTS
        self._precision = DEFAULT_PRECISION if plan.precision is None else plan.precision

    @property
    def num_samples(self) -> int:
        """B."""
        return self.hessian.num_samples

    @cached_property
    def spaces(self) -> list[KrylovSpace]:
        """The iteration from a random start that l_1 is read off."""
        return self._counted(self._lanczos.run(self.hessian, self._draw(0)))

    @cached_property
    def largest(self) -> Solution:
        """l_1 with its certified upper end."""
        return self._lanczos.read(self.spaces)

    @cached_property
    def least(self) -> list[float]:
        """Certified lower ends of l_d: of the layers, or of the iteration."""
        return [
            max(sure, lower_end(space.tridiagonal, self._failure))
            for sure, space in zip(self._sure_least().tolist(), self.spaces, strict=True)
        ]

    @property
    def _lanczos(self) -> Lanczos:
        return Lanczos(
            self.plan.tolerance,
            self.plan.max_matvecs,
            self._failure,
            min(self._precision, END_PRECISION),
            self.clock.share(0.25),
        )

    def downdated(self, vector: Tensor) -> tuple[list[KrylovSpace], Solution]:
        """Iterations on H - v v^T for v [B, d], which must be positive semidefinite, and its largest eigenvalue."""
        self._traces_first()
        solver = self._lanczos
        spaces = self._counted(solver.run(DowndatedOperator(self.hessian, vector), self._draw(0)))
        return spaces, solver.read(spaces)

    def inverse_norms(self, rhs: Tensor, shift: float) -> BracketedNorms:
        """Brackets of ||(H + shift)^-1 rhs|| for rhs [B, d]; an upper end may be infinite."""
        self._traces_first()
        ritz = [space.tridiagonal.largest for space in self.spaces]
        # Squares of enormous noise would overflow; what isn't finite can't be bracketed.
        scales = rhs.abs().amax(dim=-1)
        usable = torch.isfinite(scales)
        scales = torch.where(usable & (scales > 0), scales, torch.ones_like(scales))
        start = torch.where(usable[:, None], rhs, torch.zeros_like(rhs)) / scales[:, None]
        before = [0.0] * self.num_samples

        def finished(index: int, tridiagonal: Tridiagonal) -> bool:
            if tridiagonal.num_products % LOOK_EVERY:
                return False
            forms = inverse_forms(tridiagonal, shift, self.least[index], ritz[index])
            low, high = math.sqrt(forms.second_low), math.sqrt(forms.second_high)
            if math.isinf(high):
                settled = low <= (1 + SETTLED_GROWTH) * before[index]
                before[index] = low
                return settled
            return high <= (1 + min(self._precision, 0.01)) * low

        deadline = self.clock.share(0.4)
        spaces = self._counted(lanczos(self.hessian, start, finished, self.plan.max_matvecs, deadline))
        intervals = []
        for index, (space, scale, known) in enumerate(zip(spaces, scales.tolist(), usable.tolist(), strict=True)):
            forms = inverse_forms(space.tridiagonal, shift, self.least[index], ritz[index])
            low, high = scale * math.sqrt(forms.second_low), scale * math.sqrt(forms.second_high)
            if not known:
                low, high = 0.0, math.inf
            # Nearer to the lower end, as a Gauss rule converges from there.
            intervals.append(Interval(low if math.isinf(high) else math.sqrt(low * high), low, high))
        return BracketedNorms(intervals, [space.tridiagonal.num_products for space in spaces])

    @cached_property
    def traces(self) -> list[SampleTraces]:
        """What probes and Ritz values say of each sample's traces."""
        assert self.largest.high is not None
        return [
            SampleTraces(probes, space.tridiagonal.ritz().values, self.hessian.shape[1], high)
            for probes, space, high in zip(self.probes, self.spaces, self.largest.high.tolist(), strict=True)
        ]

    @cached_property
    def probes(self) -> list[TraceProbes]:
        """Probes per sample: 2, 4, 8, ... until the interval of d_eff is as narrow as wanted.

        All those numbers share the failure, since which of them is the last depends on what the probes show.
        """
        finished = narrow_share(self.eps, self._precision)
        deadline = self.clock.share(0.6)
        found = probe_all(self.hessian, self._probe, finished, self._probes_wanted, self.plan, deadline)
        self.matvecs += sum(each.num_products for tridiagonals in found for each in tridiagonals)
        return [self._traces(index, tridiagonals) for index, tridiagonals in enumerate(found)]

    def _traces(self, index: int, tridiagonals: list[Tridiagonal]) -> TraceProbes:
        pairs, kept = self.spaces[index].tridiagonal.ritz(), self._deflated[index]
        assert self.largest.high is not None
        return TraceProbes(
            tridiagonals,
            self._failure / max(1.0, math.log2(self.plan.max_probes)),
            pairs.values[kept],
            pairs.residuals[kept],
            float(self.largest.high[index]),
            self.hessian.shape[1],
        )

    def _probes_wanted(self, index: int, tridiagonals: list[Tridiagonal]) -> int:
        """How many probes, those done included, should bring d_eff's interval to the width wanted."""
        done = len(tridiagonals)
        interval = self._traces(index, tridiagonals).effective_dimension(self.eps)
        if interval.high - interval.low <= self._precision * interval.value:
            return done
        lows, highs = Quadrature(tridiagonals).shares(self.eps)
        if float(np.mean(highs - lows)) > 2 * BRACKET_SHARE * self._precision * float(np.mean(highs)):
            # The quadrature is too coarse, which no further probe mends.
            return done
        return min(2 * done, self.plan.max_probes)

    @cached_property
    def _deflated(self) -> list[list[int]]:
        return [deflatable(space.tridiagonal, self.eps) for space in self.spaces]

    @cached_property
    def _deflated_vectors(self) -> list[Tensor]:
        return [space.ritz_vectors(kept) for space, kept in zip(self.spaces, self._deflated, strict=True)]

    def _probe(self, index: int, number: int) -> Tensor:
        """A standard normal vector [d] with its part in the deflated vectors taken away."""
        probe, vectors = self.draws(1 + number)[index], self._deflated_vectors[index]
        for _ in range(2):
            probe = probe - (vectors @ probe) @ vectors
        return probe

    def draws(self, number: int) -> Tensor:
        """The standard normal vectors of a number, [B, d]; kept."""
        if number not in self._drawn:
            self._drawn[number] = self._draw(number)
        return self._drawn[number]

    def _traces_first(self) -> None:
        """Where time is limited the traces come before what matters less."""
        if self.clock.limited:
            _ = self.probes

    def _counted(self, spaces: list[KrylovSpace]) -> list[KrylovSpace]:
        self.matvecs += sum(space.tridiagonal.num_products for space in spaces)
        return spaces
