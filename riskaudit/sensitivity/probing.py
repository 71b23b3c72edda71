"""Random probes for all samples of a batch: 2, 4, 8, ... each, until the sample's interval is as narrow as wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from riskaudit.linalg import LinearOperator, Quadrature, Tridiagonal, lanczos
from riskaudit.linalg.active import Deadline
from riskaudit.sensitivity.plan import Plan

FIRST_PROBES = 2
# Products between two looks at whether an interval is narrow enough.
LOOK_EVERY = 4
# The share of the aimed width that one probe's own bracket may take, the rest being its spread.
BRACKET_SHARE = 0.25
DEFAULT_PRECISION = 0.2

Finished = Callable[[int, Tridiagonal], bool]


def narrow_share(eps: Sequence[float], precision: float) -> Finished:
    """Ends a probe whose bracket of its share l / (l + eps) takes no more than its part of the aimed width."""

    def finished(index: int, tridiagonal: Tridiagonal) -> bool:
        if tridiagonal.num_products % LOOK_EVERY:
            return False
        lows, highs = Quadrature([tridiagonal]).shares(eps[index])
        return float(highs[0] - lows[0]) <= BRACKET_SHARE * precision * float(highs[0])

    return finished


def probe_all(
    operator: LinearOperator,
    start: Callable[[int, int], Tensor],
    finished: Finished,
    wanted: Callable[[int, list[Tridiagonal]], int],
    plan: Plan,
    deadline: Deadline | None,
    first: Sequence[int] | None = None,
) -> list[list[Tridiagonal]]:
    """Lanczos iterations from starts of the caller's, for each sample as many as it wants.

    Args:
        operator: symmetric positive semidefinite, [B, d, d].
        start: the start [d] of a sample's i-th probe.
        finished: when an iteration may end, see `lanczos`; it is asked with the sample's position.
        wanted: how many probes a sample wants in all, given those that it has.
        plan: limits.
        deadline: True ends everything with what is there.
        first: how many each sample begins with, [B]; None for `FIRST_PROBES`.
    """
    count = operator.num_samples
    probes: list[list[Tridiagonal]] = [[] for _ in range(count)]
    numbers = [FIRST_PROBES] * count if first is None else list(first)
    while True:
        owners = [index for index, number in enumerate(numbers) for _ in range(number - len(probes[index]))]
        if not owners:
            return probes
        _probe_more(operator, owners, start, finished, plan, deadline, probes)
        if deadline is not None and deadline():
            return probes
        numbers = [wanted(index, probes[index]) for index in range(count)]


def _probe_more(
    operator: LinearOperator,
    owners: list[int],
    start: Callable[[int, int], Tensor],
    finished: Finished,
    plan: Plan,
    deadline: Deadline | None,
    probes: list[list[Tridiagonal]],
) -> None:
    """Run one more probe for each owner, who may occur several times."""
    numbers = {index: len(tridiagonals) for index, tridiagonals in enumerate(probes)}
    # Samples beside each other first, so that as few as possible meet themselves in one batch.
    order = sorted(range(len(owners)), key=lambda position: owners[:position].count(owners[position]))
    width = max(1, plan.width, operator.num_samples)
    for begin in range(0, len(order), width):
        part = [owners[position] for position in order[begin : begin + width]]
        starts = []
        for owner in part:
            starts.append(start(owner, numbers[owner]))
            numbers[owner] += 1
        selected = operator if part == list(range(operator.num_samples)) else operator.select(part)
        ends = partial(_of_owner, finished, part)
        spaces = lanczos(selected, torch.stack(starts), ends, plan.max_matvecs, deadline)
        for owner, space in zip(part, spaces, strict=True):
            probes[owner].append(space.tridiagonal)


def _of_owner(finished: Finished, owners: Sequence[int], position: int, tridiagonal: Tridiagonal) -> bool:
    return finished(owners[position], tridiagonal)
