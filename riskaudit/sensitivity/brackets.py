"""What Lanczos iterations certify of K = L H L at B samples: traces of functions, and norms of solutions.

L is the symmetric root of a prior's covariance in the prior's own units; without a prior, and with an isotropic one,
L = 1 and K = H. Everything is bracketed, nothing is solved: docs/theory.md, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

from torch import Tensor

from riskaudit.linalg import (
    BlockProbe,
    BlockTraces,
    Deflation,
    KrylovSpace,
    Quadrature,
    TraceProbes,
    Tridiagonal,
    by_block,
    deflatable,
)
from riskaudit.priors import BoundPrior, in_white_coordinates
from riskaudit.sensitivity.ends import SpectrumEnds
from riskaudit.sensitivity.information import SMALLEST_SHIFT
from riskaudit.sensitivity.norms import NORM_PRECISION, BracketedNorms, solution_norms
from riskaudit.sensitivity.probing import (
    BLOCK_BRACKET_SHARE,
    FIRST_BLOCK_PROBES,
    FIRST_PROBES,
    POOLED_FAILURE,
    NarrowDimension,
    ProbeFinished,
    aimed_width,
    block_error,
    decided,
    half_width,
    narrow_block_share,
    narrow_share,
    next_number,
    number_within,
    numbers_of_probes,
    probe_all,
    probe_depth,
)

# Leading eigenvectors of the prior's covariance that are worth an iteration each, at most, and the share of the
# prior's variance that each of them must have.
MOST_LEADING = 16
LEADING_SHARE = 0.01
# Probes are added until an interval is this many times as wide as their own brackets, or as what more of them would
# leave, or as is aimed at.
COARSEST, COARSE_SHARE = 4.0, 1.5
# Ritz vectors are left out of the probes where they are at least this share of the effective dimension.
DEFLATED_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class _Deflated:
    """Directions of one upload that probes leave out: orthonormal rows [m, n d], and ||P C P|| of what is left.

    The deflation is that of the whole, or one for each of its n blocks, each of whose directions lies in one.
    """

    deflations: list[Deflation]
    vectors: Tensor
    norm: float


@final
class Brackets:
    """Intervals for everything that proxies ask of K, where not all of its eigenvalues are known.

    Args:
        ends: of H's spectrum.
        prior: at the same uploads, in its own units, so that tr C = n d.
        eps: the shift at which traces are asked for, [B], float64.
        totals: tr C_j of every upload's samples, [B, n], float64, where an upload has several.
        thresholds: of every upload, shares of the dimension that decide, see `decided`; None for none.

    Attributes:
        operator: K, [B, n d, n d].
        eps: per upload, large enough for functions with a pole at -eps.
        matvecs: products with K so far, over uploads.
    """

    def __init__(
        self,
        ends: SpectrumEnds,
        prior: BoundPrior,
        eps: Tensor,
        totals: Tensor | None = None,
        thresholds: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.ends, self.prior, self.matvecs = ends, prior, 0
        self.thresholds = [()] * len(eps) if thresholds is None else thresholds
        self._totals: list[list[float]] | None = None if totals is None else totals.tolist()
        self.operator = in_white_coordinates(ends.hessian, prior)
        self.eps: list[float] = eps.clamp_min(SMALLEST_SHIFT).tolist()

    @property
    def dimension(self) -> int:
        """n d."""
        return self.operator.shape[1]

    @property
    def num_blocks(self) -> int:
        """n, samples of an upload."""
        return 1 if self._totals is None else len(self._totals[0])

    @cached_property
    def largest(self) -> list[float]:
        """Upper ends of K's largest eigenvalues: ||L H L|| <= ||C|| l_1."""
        pairs = zip(self.ends.largest_high, self.prior.largest.tolist(), strict=True)
        return [largest * norm for largest, norm in pairs]

    @cached_property
    def traces(self) -> Sequence[TraceProbes | BlockTraces]:
        """What probes say of each sample: ever more, until the effective dimension's interval is narrow enough.

        All those numbers share the failure, since which of them is the last depends on what the probes show.
        """
        return self._block_traces() if self._totals is not None else self._whole_traces()

    def _whole_traces(self) -> list[TraceProbes]:
        deadline = self.ends.clock.share(0.6)
        probes = probe_all(
            self.operator,
            self._probe,
            self._finished,
            self._probes_wanted,
            self.ends.plan,
            deadline,
            [self._probes_wanted(index, []) for index in range(self.operator.num_samples)],
            summarise=_tridiagonal,
        )
        self.matvecs += sum(each.num_products for tridiagonals in probes for each in tridiagonals)
        return [self._traces(index, own) for index, own in enumerate(probes)]

    @property
    def _finished(self) -> ProbeFinished[Tridiagonal]:
        """When a probe may end; not cached, since it refers to this."""
        by_share = narrow_share(self.eps, self.ends.plan.precision)
        if not self.prior.isotropic:
            return by_share
        narrow = self._narrow

        def finished(index: int, space: KrylovSpace, earlier: Sequence[Tridiagonal]) -> bool:
            if len(self._deflated[index].vectors):
                return by_share(index, space, earlier)
            return narrow.finished(index, space, [*self._pooled_probe(index), *earlier])

        return finished

    @cached_property
    def _narrow(self) -> NarrowDimension:
        precision, failure = self.ends.plan.precision, self.ends.dimension_failure
        return NarrowDimension(self.eps, precision, self.dimension, failure, self.thresholds)

    @cached_property
    def _pooled(self) -> list[bool]:
        """Whether a sample's iteration that l_1 was read off is one of its probes.

        It is, unless its Ritz vectors carry so much of the effective dimension that they had better be left out.
        """
        if not (self.prior.isotropic and self.ends.are_probes):
            return [False] * self.operator.num_samples
        pooled = []
        for space, eps in zip(self.ends.spaces, self.eps, strict=True):
            low, high = Quadrature([space.tridiagonal]).shares(eps)
            share = float(low[0] + high[0]) / 2 / max(space.tridiagonal.start_norm**2, SMALLEST_SHIFT)
            dimension = self.dimension * share
            pooled.append(len(deflatable(space.tridiagonal, eps)) < DEFLATED_SHARE * dimension)
        return pooled

    def _block_traces(self) -> list[BlockTraces]:
        depth = probe_depth(self.ends.plan)
        finished = narrow_block_share(self.eps, self.ends.precision, self.num_blocks, depth)
        deadline = self.ends.clock.share(0.6)
        _ = self._deflated
        probes = probe_all(
            self.operator,
            self._probe,
            finished,
            self._block_probes_wanted,
            self.ends.plan,
            deadline,
            [min(FIRST_BLOCK_PROBES, self.ends.plan.max_probes)] * self.operator.num_samples,
            summarise=lambda start, space: BlockProbe.of(start, space, self.num_blocks),
            of_uploads=True,
        )
        self.matvecs += sum(each.tridiagonal.num_products for own in probes for each in own)
        return [traces for index, own in enumerate(probes) for traces in self._traces_of_blocks(index, own)]

    def _pooled_probe(self, index: int) -> list[Tridiagonal]:
        return [self.ends.spaces[index].tridiagonal] if self._pooled[index] else []

    @property
    def _looks(self) -> int:
        # A look may be at any of these numbers of probes, whichever they are.
        return len(numbers_of_probes(self.ends.plan.max_probes))

    def _part(self, index: int) -> float:
        """Of a failure. Whether Ritz vectors are left out of the probes depends on what the first one shows."""
        if not (self.prior.isotropic and self.ends.are_probes):
            return 1.0
        return POOLED_FAILURE if self._pooled[index] else 1 - POOLED_FAILURE

    def _traces(self, index: int, probes: list[Tridiagonal], as_if_double: bool = False) -> TraceProbes:
        deflated, space = self._deflated[index], self.ends.spaces[index]
        # Ritz values of the iteration that l_1 was read off add certain ends.
        ritz_values = space.tridiagonal.ritz().values if self.prior.isotropic else None
        every = [*self._pooled_probe(index), *probes]
        return TraceProbes(
            [each.as_if_double() for each in every] if as_if_double else every,
            self._part(index) * self.ends.failure,
            self.dimension,
            norm=deflated.norm,
            largest=self.largest[index],
            scale=self._scale(index),
            deflation=deflated.deflations[0],
            ritz_values=ritz_values,
            share_failure=self._part(index) * self.ends.dimension_failure,
            looks=self._looks,
            half_width=half_width(self.ends.plan.precision),
        )

    def _traces_of_blocks(self, index: int, probes: list[BlockProbe]) -> list[BlockTraces]:
        assert self._totals is not None
        deflated = self._deflated[index]
        return [
            BlockTraces(
                probes,
                block,
                self.ends.failure / self._looks,
                total,
                norm=deflated.norm,
                largest=self.largest[index],
                deflation=deflated.deflations[block],
                scale=self._scale(index),
                share_failure=self.ends.dimension_failure / self._looks,
            )
            for block, total in enumerate(self._totals[index])
        ]

    def _scale(self, index: int) -> float:
        """What products with K are rounded relative to, where that isn't K's own largest eigenvalue; 0 if unknown."""
        return 0.0 if self.prior.isotropic or math.isinf(self.largest[index]) else self.largest[index]

    @cached_property
    def _deflated(self) -> list[_Deflated]:
        """Ritz vectors of H where L = 1, since those cost nothing more; else the leading eigenvectors of C.

        Measured on a network for digits with the isotropic prior (64 inputs, noise 0.01 to 1): without Ritz vectors,
        Ritz values and quadrature of norms, intervals of revealed fractions are 1.01 to 1.9 times as wide at the same
        products, and errors often have none.
        """
        return self._ritz_vectors() if self.prior.isotropic else self._leading_vectors()

    def _ritz_vectors(self) -> list[_Deflated]:
        if self.num_blocks > 1:
            # Ritz vectors lie across blocks.
            empty = self.prior.mean.new_empty(0, self.dimension)
            return [_Deflated([Deflation()] * self.num_blocks, empty, 1.0)] * self.operator.num_samples
        deflated = []
        for space, eps, pooled in zip(self.ends.spaces, self.eps, self._pooled, strict=True):
            pairs, chosen = space.tridiagonal.ritz(), [] if pooled else deflatable(space.tridiagonal, eps)
            deflation = Deflation(pairs.values[chosen], pairs.residuals[chosen])
            deflated.append(_Deflated([deflation], space.ritz_vectors(chosen), 1.0))
        return deflated

    def _leading_vectors(self) -> list[_Deflated]:
        """With an iteration for each of them."""
        finished, deadline = narrow_share(self.eps, self.ends.plan.precision), self.ends.clock.share(0.3)
        leading = [self._leading(index) for index in range(self.operator.num_samples)]
        counts = [len(vectors) for _, vectors in leading]

        def start(index: int, number: int) -> Tensor:
            """L u_i = sqrt(eigenvalue) u_i, [d]."""
            values, vectors = leading[index]
            return math.sqrt(values[number]) * vectors[number]

        iterations = probe_all(
            self.operator,
            start,
            finished,
            lambda index, _: counts[index],
            self.ends.plan,
            deadline,
            counts,
            summarise=_tridiagonal,
            of_uploads=self.num_blocks > 1,
        )
        self.matvecs += sum(each.num_products for tridiagonals in iterations for each in tridiagonals)
        return [
            _Deflated(self._by_block(tridiagonals, values, vectors, self._scale(index)), vectors, values[-1])
            for index, (tridiagonals, (values, vectors)) in enumerate(zip(iterations, leading, strict=True))
        ]

    def _by_block(
        self, iterations: list[Tridiagonal], values: list[float], vectors: Tensor, scale: float
    ) -> list[Deflation]:
        """The iterations from eigenvectors [m, n d] of C with these eigenvalues, by the block that each lies in."""
        blocks = by_block(vectors, self.num_blocks).norm(dim=2).argmax(1).tolist() if iterations else []
        deflations = []
        for block in range(self.num_blocks):
            own = [number for number, place in enumerate(blocks) if place == block]
            deflations.append(
                Deflation(None, None, [iterations[number] for number in own], [values[number] for number in own], scale)
            )
        return deflations

    def _leading(self, index: int) -> tuple[list[float], Tensor]:
        """The leading eigenvalues [m + 1] and eigenvectors [m, d] of one sample's C that stand out."""
        if self.prior.leading is None:
            return [float(self.prior.largest[index])], self.prior.mean.new_empty(0, self.dimension)
        values, vectors = self.prior.leading(index, min(MOST_LEADING, self.ends.plan.max_probes))
        count = sum(value > LEADING_SHARE * self.dimension for value in values[:-1])
        return values[: count + 1], vectors[:count]

    def _probe(self, index: int, number: int) -> Tensor:
        """L P z for a standard normal z, [d]."""
        probe, vectors = self.ends.draws(1 + number)[index], self._deflated[index].vectors
        for _ in range(2):
            probe = probe - (vectors @ probe) @ vectors
        return self.prior.select([index]).root(probe[None])[0]

    def _probes_wanted(self, index: int, probes: list[Tridiagonal]) -> int:
        """How many probes, those done included, should bring the interval to the width wanted."""
        precision = self.ends.plan.precision
        pooled = len(self._pooled_probe(index))
        if pooled + len(probes) == 0:
            return min(FIRST_PROBES, self.ends.plan.max_probes)
        # What is rounding, or coarse in the quadrature, no further probe mends.
        traces = self._traces(index, probes, as_if_double=True)
        interval = traces.effective_dimension(self.eps[index])
        if pooled:
            coarse = COARSE_SHARE * self.dimension * self._narrow.left_open(index, traces.tridiagonals)
        else:
            coarse = COARSEST * traces.coarseness(self.eps[index])
        width = max(aimed_width(precision, interval.value, self.dimension), coarse)
        low, high = interval.low / self.dimension, interval.high / self.dimension
        if interval.high - interval.low <= width or decided(low, high, self.thresholds[index]):
            return len(probes)
        wanted = next_number(len(probes) + pooled, interval, width, self.ends.plan.max_probes)
        products = [each.num_products for each in probes] or [self.ends.spaces[index].tridiagonal.num_products]
        return max(len(probes), number_within(wanted - pooled, products, self.ends.plan))

    def _block_probes_wanted(self, index: int, probes: list[BlockProbe]) -> int:
        """Likewise, for the widest interval of an upload's samples."""
        precision, eps = self.ends.precision, self.eps[index]
        intervals = [traces.effective_dimension(eps) for traces in self._traces_of_blocks(index, probes)]
        if all(interval.high - interval.low <= precision * interval.value for interval in intervals):
            return len(probes)
        errors = [block_error(each.tridiagonal, eps, self.num_blocks) for each in probes]
        if min(errors, default=0.0) > 2 * BLOCK_BRACKET_SHARE * precision:
            # Further probes would tell as little.
            return len(probes)
        return number_within(2 * len(probes), [each.tridiagonal.num_products for each in probes], self.ends.plan)

    def norm_remaining(self, index: int) -> float:
        """An upper end of ||L eps (K + eps)^-1 L|| of one sample: of a block of ||(H / eps + C^-1)^-1||."""
        upload = index // self.num_blocks
        eps, largest, least = self.eps[upload], float(self.prior.largest[upload]), self.ends.least[upload]
        shift = eps / largest
        bound = largest * (shift / (least + shift)) if math.isfinite(least + shift) and least > 0 else largest
        return min(bound, self.traces[index].norm_remaining(eps))

    def solution_norms(
        self,
        rhs: Tensor,
        shifts: Tensor,
        precision: float = NORM_PRECISION,
        enough: Sequence[float] | None = None,
        most: Sequence[float] | None = None,
    ) -> BracketedNorms:
        """Brackets of ||[L (K + shift)^-1 rhs]_j|| of every sample j for rhs [B, n d] and shifts [B].

        An upper end may be infinite. See `riskaudit.sensitivity.norms.solution_norms`.
        """
        if self.ends.clock.limited:
            # Where time is limited the traces come before what matters less.
            _ = self.traces
        norms = solution_norms(
            self.operator,
            self.prior,
            self.ends,
            self.largest,
            rhs,
            shifts.tolist(),
            self.num_blocks,
            precision,
            enough,
            most,
        )
        self.matvecs += sum(norms.matvecs[:: self.num_blocks])
        return norms


def _tridiagonal(_: Tensor, space: KrylovSpace) -> Tridiagonal:
    return space.tridiagonal
