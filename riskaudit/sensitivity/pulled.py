"""What random pulls J^T u tell of every sample of an upload: wide intervals at the price of reverse passes alone.

One pull of u ~ N(0, I) tells of all n samples at once, since its block of sample j is J_j^T u, and E J_j^T u u^T J_j
is that sample's own H_j = J_j^T J_j (an attacker who knows the others faces nothing else). A product with every H_j
takes n forward derivatives through the whole upload. With K = L H_j L in the units of the prior (`information`), eps =
sigma^2 / tau^2 and f(x) = x / (x + eps), some of the pulls s_i = L J_j^T u_i span a subspace Q [d, r] that carries most
of K; the others, independent of it, tell the trace of what is left. Which ones measure is open: with few pulls every
one and every pair of them do in turn, each against the span of all others, and the smallest counts, with the failure
shared among them all.

[derived] With M = K (K + eps)^-1, the effective dimension is tr L M L. An attacker who is told Q^T xi besides, where
x = mu + L xi, knows more, and the posterior of the rest is that of P K P with P = 1 - Q Q^T, so that

    tr L M L <= tr L Q Q^T L + tr L P K P (P K P + eps)^-1 P L.

With weights w_i = |L P v_i|^2 and eigenvalues k_i of P K P, and g_c(x) = min(x, c): f(x) <= (1 + eps / c) f(g_c(x)),
since f <= 1 = (1 + eps / c) f(c), and f(g_c) is concave, hence

    sum_i w_i f(k_i) <= (1 + eps / c) W f(T_c / W),   T_c = sum_i w_i g_c(k_i),   W = sum_i w_i.

|L P s|^2 = u^T J_j L P C P L J_j^T u for a further pull has the mean tr (P K P) P C P, which exceeds T_c, and T_c's own
probes have the norm c ||C|| at most, so that `trace_high` bounds T_c from above: however few directions carry nearly
all of K, a hidden one counts c at most. That is why a probe or two are enough where T_c is many times c. The same with
all pulls and Q = 0 counts where that is less.

[derived] Pulls in single precision are of J~ = J + E with |E L|_F <= r |J~ L|_F, and K <= A + B with A = (1 + r) K~,
B = (1 + 1 / r) L E^T E L. f grows by eps ((A + eps)^-1 - (A + B + eps)^-1) <= eps (A + eps)^-1 B (A + eps)^-1 from A to
A + B, and f((1 + r) x) <= (1 + r) f(x): the upper end D~ becomes (1 + r) (D~ + r ||C|| |J~ L|_F^2 / eps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg import Interval
from riskaudit.linalg.krylov.traces import trace_high, trace_interval
from riskaudit.priors import BoundPrior
from riskaudit.results import Status
from riskaudit.sensitivity.information import Information

# Up to so many pulls take turns in measuring what the subspace of the others leaves; of more the last ones measure.
MOST_IN_TURN, MEASURING = 8, 2
# From so many on, pairs of them measure too.
PAIRS_FROM = 4
# c in units of eps.
CAPS = (1.0, 3.0, 10.0, 30.0)
# Events that half of a sample's failure is shared among: the trace's two ends, and for every cap one of all pulls.
EVENTS = 2 + len(CAPS)
SMALLEST_SHIFT = 1e-100


@dataclass(frozen=True)
class Left:
    """What a subspace leaves, as some of the pulls measure it.

    Attributes:
        mean: of |L P s|^2 over them, in the prior's units.
        count: of them.
        subspace: tr L Q Q^T L, what the subspace may reveal at most.
    """

    mean: float
    count: int
    subspace: float


@final
class PulledInformation(Information):
    """Of one sample that leaves with others, for an attacker who knows these.

    Args:
        left: what subspaces leave, the smallest of each number of measuring pulls.
        choices: how many there were to choose from.
        total: tr C in the prior's units, d.
        norm: the largest eigenvalue of C in the prior's units.
        whole: |L s|^2 of every pull.
        tau: the prior's standard deviation.
        failure: probability that an interval misses.
        white: whether the prior is isotropic.
        rounding: r >= |E L|_F / |J~ L|_F, of pulls of J~ = J + E.
        energy: the mean of |s|^2 over the pulls.
    """

    status: Status = "bracketed"

    def __init__(
        self,
        left: Sequence[Left],
        choices: int,
        total: float,
        norm: float,
        whole: Sequence[float],
        tau: float,
        failure: float,
        white: bool,
        rounding: float = 0.0,
        energy: float = 0.0,
    ) -> None:
        self.tau, self.total, self.failure = tau, total, failure / 2 / EVENTS
        self._left, self._failure_of_left, self._norm = left, failure / 2 / (choices * len(CAPS)), norm
        self._whole, self._pulls, self._white = sum(whole) / len(whole), len(whole), white
        self._rounding, self._energy = rounding, energy
        self._dimensions: dict[float, Interval] = {}

    @override
    def revealed(self, sigma: float) -> Interval:
        dimension = self._dimension(sigma)
        return dimension.map(lambda end: min(1.0, end / self.total))

    @override
    def error(self, sigma: float) -> Interval:
        revealed = self.revealed(sigma)
        value, low, high = (
            self.tau * math.sqrt(max(0.0, 1 - each)) for each in (revealed.value, revealed.high, revealed.low)
        )
        return Interval(value, low, high)

    @property
    @override
    def scale(self) -> tuple[float, float]:
        # What a trace is at most bounds the largest eigenvalue, and |L s|^2 of a white prior is one of K.
        return self._whole / self.total, self._trace_ends()[1]

    @property
    @override
    def trace(self) -> Interval | None:
        if not self._white:
            return None
        low, high = self._trace_ends()
        return Interval(min(max(self._whole, low), high), low, high)

    def _trace_ends(self) -> tuple[float, float]:
        """Of tr K C."""
        low, high = self._computed_trace(self._whole)
        return low * max(0.0, 1 - self._rounding) ** 2, high * (1 + self._rounding) ** 2

    def _computed_trace(self, mean: float) -> tuple[float, float]:
        """Ends of the trace whose estimate this is, as it is of J~."""
        return trace_interval(mean, mean, self._pulls, math.inf, 2 * self.failure)

    def _dimension(self, sigma: float) -> Interval:
        """tr L K (K + eps)^-1 L; remembered, since a review asks for the same noise several times."""
        if sigma not in self._dimensions:
            self._dimensions[sigma] = self._worked_out(sigma)
        return self._dimensions[sigma]

    def _worked_out(self, sigma: float) -> Interval:
        ratio = sigma / self.tau
        eps = max(ratio * ratio, SMALLEST_SHIFT)
        if not all(math.isfinite(each.mean) for each in self._left) or not math.isfinite(self._whole):
            return Interval(self.total, 0.0, self.total)
        whole = (self._whole, self._pulls, eps, self.total, self.failure)
        high = min(self.total, *(self._high(*whole, cap) for cap in CAPS))
        for each in self._left:
            left = (each.mean, each.count, eps, max(0.0, self.total - each.subspace), self._failure_of_left)
            high = min(high, *(each.subspace + self._high(*left, cap) for cap in CAPS))
        trace_low, trace_high = self._trace_ends()
        if self._rounding:
            lost = self._rounding * self._norm * self._computed_trace(self._energy)[1] / eps
            high = min(self.total, (1 + self._rounding) * (high + lost))
        # Every eigenvalue is the trace at most: f(x) >= x / (trace + eps).
        low = min(high, trace_low / (trace_high + eps) if self._white and math.isfinite(trace_high) else 0.0)
        last = self._left[-1]
        rest = max(0.0, self.total - last.subspace)
        value = min(high, max(low, _concave(last.mean, rest, eps) + _concave(self._whole, last.subspace, eps)))
        return Interval(value, low, high)

    def _high(self, mean: float, count: int, eps: float, weight: float, failure: float, cap: float) -> float:
        """An upper end of sum_i w_i f(k_i) with weights of this sum, from the mean over so many pulls."""
        if not weight:
            return 0.0
        trace = trace_high(mean, count, cap * eps * self._norm, failure)
        if not math.isfinite(trace):
            return weight
        high = (1 + 1 / cap) * _concave(trace, weight, eps)
        # min(x / eps, 1) >= f(x).
        return min(weight, high, trace / eps if cap == 1 else high)


def pulled_information(
    pulled: Tensor, earlier: Tensor | None, prior: BoundPrior, failure: float, rounding: Sequence[float] | None = None
) -> list[Information]:
    """Information at n samples from pulls of standard normal vectors, independent of each other.

    Args:
        pulled: J_j^T u of every sample, [n, d, k].
        earlier: pulls [n, d, m] that these are independent of, and that measure nothing more; None without.
        prior: at the samples.
        failure: probability, per sample, that an interval misses.
        rounding: of every sample's pulls, [n], as in `PulledInformation`; 0 where it isn't given.
    """
    taus, units = prior.std.tolist(), prior.in_its_units()
    rooted, known = _each(units.root, pulled), pulled[..., :0]
    if earlier is not None:
        known = _each(units.root, earlier)
    whole = _each(units.root, rooted).double().square().sum(1)
    choices = _measuring(pulled.shape[-1])
    by_size: dict[int, list[list[Left]]] = {}
    for choice in choices:
        by_size.setdefault(len(choice), []).append(_left(rooted, known, choice, units))
    smallest = [[min(of_sample, key=_mean) for of_sample in zip(*same, strict=True)] for same in by_size.values()]
    errors = [0.0] * len(taus) if rounding is None else rounding
    blur = zip(errors, rooted.double().square().sum(1).mean(-1).tolist(), strict=True)
    rows = zip(zip(*smallest, strict=True), units.largest.tolist(), whole.tolist(), taus, blur, strict=True)
    total, white = float(pulled.shape[1]), units.isotropic
    return [
        PulledInformation(left, len(choices), total, norm, of_pulls, tau, failure, white, *blurred)
        for left, norm, of_pulls, tau, blurred in rows
    ]


def _measuring(count: int) -> list[tuple[int, ...]]:
    """Which of so many pulls measure, in turn."""
    if count > MOST_IN_TURN:
        return [tuple(range(count - MEASURING, count))]
    sizes = (1,) if count < PAIRS_FROM else (1, 2)
    return [choice for size in sizes for choice in combinations(range(count), size)]


def _left(rooted: Tensor, known: Tensor, choice: tuple[int, ...], units: BoundPrior) -> list[Left]:
    """What some of the pulls L s [n, d, k] measure beside the span of the others and of the known ones [n, d, m]."""
    others = [index for index in range(rooted.shape[-1]) if index not in choice]
    basis = torch.linalg.qr(torch.cat([known, rooted[..., others]], dim=-1).double())[0]
    measuring = rooted[..., list(choice)].double()
    left = measuring - basis @ (basis.mT @ measuring)
    # Once more, for the rounding of the first time.
    left = left - basis @ (basis.mT @ left)
    squares = _each(units.root, left.to(rooted)).double().square().sum(1).mean(1).tolist()
    subspace = _each(units.root, basis.to(rooted)).double().square().sum((1, 2)).clamp_max(rooted.shape[1]).tolist()
    return [Left(mean, len(choice), within) for mean, within in zip(squares, subspace, strict=True)]


def _mean(left: Left) -> float:
    # What isn't a number is the largest.
    return left.mean if left.mean == left.mean else math.inf


def _each(apply: object, columns: Tensor) -> Tensor:
    """A map of [n, d] on columns [n, d, k]."""
    assert callable(apply)
    if not columns.shape[-1]:
        return columns
    return torch.stack([apply(column) for column in columns.unbind(-1)], dim=-1)


def _concave(trace: float, count: float, eps: float) -> float:
    """The largest sum of ``count`` values f(x) whose x add up to a trace."""
    return count * trace / (trace + count * eps) if trace > 0 and count > 0 else 0.0
