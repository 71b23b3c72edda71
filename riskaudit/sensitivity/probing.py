"""Random probes for all samples of a batch: 2, 4, 8, ... each, until the sample's interval is as narrow as wanted."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar, final

import numpy as np
import torch
from torch import Tensor

from riskaudit.linalg import (
    Finished,
    Interval,
    KrylovSpace,
    LinearOperator,
    Quadrature,
    Strengths,
    Tridiagonal,
    lanczos,
    share_ends_by_exponentials,
)
from riskaudit.linalg.active import Deadline
from riskaudit.linalg.krylov.exponentials import RATIO_SHARE
from riskaudit.linalg.operators import RepeatedOperator
from riskaudit.sensitivity.estimates import WIDEST
from riskaudit.sensitivity.plan import Plan

FIRST_PROBES = 2
# Blocks take more probes than the whole, and several at once cost less each.
FIRST_BLOCK_PROBES = 4
# Products between two looks at whether an interval is narrow enough.
LOOK_EVERY = 2
# After this share of its products a look also asks whether an iteration will come to anything, and how much faster it
# may converge from there on than it has lately.
SHARE_TO_JUDGE, ACCELERATION = 1 / 3, 2.0
# The share of the aimed width that one probe's own bracket may take, the rest being the probes' spread; of blocks,
# whose brackets narrow more slowly, a larger one.
BRACKET_SHARE, BLOCK_BRACKET_SHARE = 0.1, 0.25
# The part of a failure for intervals that the first iteration is a probe of; the others have what is left.
POOLED_FAILURE = 0.75
# The share of the aimed width that is too little to be narrowed by for further products of a probe.
SPENT_SHARE = 0.01
# The share of the aimed width that the probes' spread may take where it decides how many there are.
LEFT_TO_NUMBER = 0.9
DEFAULT_PRECISION = 0.2
# The width aimed at where no precision is asked for: this share of the whole range, and never more than the number.
DEFAULT_WIDTH = 0.08
# The width that is narrow enough where an interval lies on one side of all that decides: a value is shown inside.
COARSE_WIDTH = WIDEST
# Intervals narrow faster than by the square root of the number of probes while there are few.
NARROWING = 1.5
# Probes of uploads that go together: columns of one product, and numbers in the bases of their iterations.
COLUMNS, COLUMN_ENTRIES = 16, 2**27

Probe = TypeVar("Probe")
# Whether a probe may end, given the sample's position, the probe's space so far, and the probes that the sample has.
ProbeFinished = Callable[[int, KrylovSpace, Sequence[Probe]], bool]


def aimed_width(precision: float | None, value: float, total: float) -> float:
    """How wide the interval of a number in [0, total] may be; without a precision as wide as verdicts need."""
    return min(value, DEFAULT_WIDTH * total) if precision is None else precision * value


def narrow_share(eps: Sequence[float], precision: float | None) -> ProbeFinished[object]:
    """Ends a probe whose bracket of its share l / (l + eps) is a small part of the aimed width."""

    def finished(index: int, space: KrylovSpace, _: Sequence[object]) -> bool:
        tridiagonal = space.tridiagonal
        if tridiagonal.num_products % LOOK_EVERY:
            return False
        # No product narrows what rounding leaves open.
        rules = Quadrature([tridiagonal.as_if_double()])
        lows, highs = rules.shares(eps[index])
        wanted = BRACKET_SHARE * aimed_width(precision, float(highs[0]), float(rules.squared_norms[0]))
        return float(highs[0] - lows[0]) <= wanted

    return finished


@final
class NarrowDimension:
    """Ends a probe where L = 1: the effective dimension's interval is as narrow as aimed at, or will be with others.

    What an interval's width would be if both rules agreed falls with the square root of the number of probes, so it
    says how many there must be. The last of them goes on until the interval is narrow enough; the others, until what
    their rules differ by leaves room for that.

    Args:
        eps: the shift, [B].
        precision: relative width aimed at, or None.
        dimension: n.
        failure: of the effective dimension's ends, if all that there is to know of it came from probes.
        thresholds: of every sample, shares of n that decide, see `decided`; None for none.
    """

    def __init__(
        self,
        eps: Sequence[float],
        precision: float | None,
        dimension: int,
        failure: float,
        thresholds: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.eps, self.precision, self.dimension = eps, precision, dimension
        self.thresholds = [()] * len(eps) if thresholds is None else thresholds
        self.failure = (1 - RATIO_SHARE) * POOLED_FAILURE * failure
        self.strengths = Strengths.for_width(dimension, self.failure, half_width(precision))

    def finished(self, index: int, space: KrylovSpace, earlier: Sequence[Tridiagonal] = ()) -> bool:
        """Whether the sample's present probe may end, given those that it has."""
        if space.tridiagonal.num_products % LOOK_EVERY:
            return False
        # No product narrows what rounding leaves open.
        every = [each.as_if_double() for each in (*earlier, space.tridiagonal)]
        low, high = self._ends(index, every)
        aim = aimed_width(self.precision, (low + high) / 2, 1.0)
        if high - low <= aim or decided(low, high, self.thresholds[index]):
            return True
        least, most = self._ends(index, [each.as_if_exhausted() for each in every])
        number = len(every)
        needed = max(number, math.ceil(number * ((most - least) / (LEFT_TO_NUMBER * aim)) ** 2))
        if needed > number and high - low - (most - least) <= aim - (most - least) * math.sqrt(number / needed):
            return True
        return number > 1 and self._is_spent(index, every, high - low, aim)

    def _is_spent(self, index: int, every: list[Tridiagonal], width: float, aim: float) -> bool:
        """Whether the last probe's own products can neither bring the interval to its aim nor narrow it much more.

        What is left then is the others' brackets, and their number. Without this a probe goes on until its space is
        invariant, after as many products as there are coordinates.
        """
        least, most = self._ends(index, [*every[:-1], every[-1].as_if_exhausted()])
        return most - least > aim and width - (most - least) <= SPENT_SHARE * aim

    def left_open(self, index: int, tridiagonals: Sequence[Tridiagonal]) -> float:
        """The part of the width that more probes like these would leave: what their rules differ by, and rounding."""
        low, high = self._ends(index, list(tridiagonals))
        least, most = self._ends(index, [each.as_if_double().as_if_exhausted() for each in tridiagonals])
        return max(0.0, high - low - (most - least))

    def _ends(self, index: int, tridiagonals: list[Tridiagonal]) -> tuple[float, float]:
        return share_ends_by_exponentials(
            Quadrature(tridiagonals), self.eps[index], self.strengths, self.dimension, self.failure
        )


def decided(low: float, high: float, thresholds: Sequence[float]) -> bool:
    """Whether a share's interval lies on one side of all thresholds, of which there are some, and isn't too coarse."""
    beside = all(high <= threshold or threshold < low for threshold in thresholds)
    return bool(thresholds) and beside and high - low <= COARSE_WIDTH


def half_width(precision: float | None) -> float:
    """What the ends of a share are to lie from its value, at most."""
    return DEFAULT_WIDTH / 2 if precision is None else min(DEFAULT_WIDTH, precision) / 2


def block_error(tridiagonal: Tridiagonal, eps: float, num_blocks: int) -> float:
    """A probe's own error of the share of one of n blocks, relative to it; infinite where nothing is known of it."""
    if not tridiagonal.num_products:
        return math.inf
    values, vectors, _ = tridiagonal.ritz()
    inverses = vectors[0] / (np.maximum(values, 0.0) + eps)
    missed = float(tridiagonal.off_diagonal[-1]) * abs(float(vectors[-1] @ inverses))
    share = float(vectors[0] @ (np.maximum(values, 0.0) * inverses))
    return math.sqrt(num_blocks) * missed / share if share > 0 else 0.0 if missed == 0 else math.inf


def narrow_block_share(eps: Sequence[float], precision: float, num_blocks: int, depth: int) -> ProbeFinished[object]:
    """The same for the n blocks of an upload: ends a probe whose own error is such a part of a block's share.

    A block of b has about ||b|| / sqrt(n), and 1 / n of the whole share. A probe whose error would still exceed a
    block's share after ``depth`` products, though it fell twice as fast as in the second half of those made, would tell
    nothing of blocks: it ends too.
    """

    def finished(index: int, space: KrylovSpace, _: Sequence[object]) -> bool:
        tridiagonal = space.tridiagonal
        count = tridiagonal.num_products
        if count % LOOK_EVERY:
            return False
        now = block_error(tridiagonal, eps[index], num_blocks)
        if now <= BLOCK_BRACKET_SHARE * precision:
            return True
        if count < SHARE_TO_JUDGE * depth:
            return False
        half = count // 2
        before = block_error(tridiagonal.leading(half), eps[index], num_blocks)
        rate = min(1.0, now / max(before, sys.float_info.min))
        return bool(now * rate ** (ACCELERATION * (depth - count) / (count - half)) > 1)

    return finished


def numbers_of_probes(most: int) -> list[int]:
    """So many probes there may be when an interval is looked at, in order: powers of two and their halves more."""
    doubled = [2**power for power in range(most.bit_length())]
    return sorted({most, *doubled, *(3 * each // 2 for each in doubled if each > 1 and 3 * each // 2 <= most)})


def next_number(number: int, interval: Interval, width: float, most: int) -> int:
    """How many probes should bring an interval to this width, given the one that there is with a number of them."""
    excess = (interval.high - interval.low) / width if width > 0 else math.inf
    larger = [each for each in numbers_of_probes(most) if each > number]
    return next((each for each in larger if each >= number * excess**NARROWING), larger[-1] if larger else number)


def number_within(wanted: int, products: Sequence[int], plan: Plan) -> int:
    """How many of the probes wanted may be made, given the products that each took so far."""
    wanted, most = min(wanted, plan.max_probes), plan.max_probe_products
    if most is None:
        return wanted
    return max(len(products), min(wanted, len(products) * most // max(1, sum(products))))


def probe_all(
    operator: LinearOperator,
    start: Callable[[int, int], Tensor],
    finished: ProbeFinished[Probe],
    wanted: Callable[[int, list[Probe]], int],
    plan: Plan,
    deadline: Deadline | None,
    first: Sequence[int] | None = None,
    *,
    summarise: Callable[[Tensor, KrylovSpace], Probe],
    of_uploads: bool = False,
) -> list[list[Probe]]:
    """Lanczos iterations from starts of the caller's, for each sample as many as it wants.

    Args:
        operator: symmetric positive semidefinite, [B, d, d].
        start: the start [d] of a sample's i-th probe.
        finished: when an iteration may end.
        wanted: how many probes a sample wants in all, given those that it has.
        plan: limits.
        deadline: True ends everything with what is there.
        first: how many each sample begins with, [B]; None for `FIRST_PROBES`.
        summarise: what is remembered of a start [d] and its iteration.
        of_uploads: whether "samples" are uploads of several, whose probes go together as columns of one product.
    """
    count = operator.num_samples
    width, probes = max(1, plan.width, count), list[list[Probe]]([] for _ in range(count))
    if of_uploads:
        operator = RepeatedOperator(operator, list(range(count)))
        width = max(width, min(COLUMNS, COLUMN_ENTRIES // (operator.shape[0] * probe_depth(plan))))
    numbers = [FIRST_PROBES] * count if first is None else list(first)
    while True:
        owners = [index for index, number in enumerate(numbers) for _ in range(number - len(probes[index]))]
        if not owners:
            return probes
        counts = list(map(len, probes))
        found = list(map(tuple, probes))

        def ends(owner: int, space: KrylovSpace, found: list[tuple[Probe, ...]] = found) -> bool:
            return finished(owner, space, found[owner])

        for owner, vector, space in _iterations(operator, owners, start, ends, plan, deadline, counts, width):
            probes[owner].append(summarise(vector, space))
        if deadline is not None and deadline():
            return probes
        numbers = [wanted(index, probes[index]) for index in range(count)]


def _iterations(
    operator: LinearOperator,
    owners: list[int],
    start: Callable[[int, int], Tensor],
    finished: Finished,
    plan: Plan,
    deadline: Deadline | None,
    numbers: list[int],
    width: int,
) -> Iterator[tuple[int, Tensor, KrylovSpace]]:
    """One more probe for each owner, who may occur several times and has ``numbers`` of them: its start and space."""
    # Samples beside each other first, so that as few as possible meet themselves in one batch.
    order = sorted(range(len(owners)), key=lambda position: owners[:position].count(owners[position]))
    for begin in range(0, len(order), width):
        part = [owners[position] for position in order[begin : begin + width]]
        starts = []
        for owner in part:
            starts.append(start(owner, numbers[owner]))
            numbers[owner] += 1
        selected = operator if part == list(range(operator.num_samples)) else operator.select(part)
        ends = partial(_of_owner, finished, part)
        spaces = lanczos(selected, torch.stack(starts), ends, probe_depth(plan), deadline)
        yield from zip(part, starts, spaces, strict=True)


def probe_depth(plan: Plan) -> int:
    """Products per probe at most."""
    return plan.max_matvecs if plan.max_probe_matvecs is None else plan.max_probe_matvecs


def _of_owner(finished: Finished, owners: Sequence[int], position: int, space: KrylovSpace) -> bool:
    return finished(owners[position], space)
