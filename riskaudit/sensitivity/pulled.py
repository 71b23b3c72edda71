"""What random pulls J^T u tell of every sample of an upload: wide intervals at the price of reverse passes alone.

One pull of u ~ N(0, I) tells of all n samples at once, since its block of sample j is J_j^T u, and E J_j^T u u^T J_j
is that sample's own H_j = J_j^T J_j (an attacker who knows the others faces nothing else). A product with every H_j
takes n forward derivatives through the whole upload. With K = L H_j L in the units of the prior (`information`), eps =
sigma^2 / tau^2 and f(x) = x / (x + eps), the first pulls s_i = L J_j^T u_i span a subspace Q [d, r] that carries most
of K; the others, independent of it, tell the trace of what is left.

[derived] With M = K (K + eps)^-1, the effective dimension is tr L M L. An attacker who is told Q^T xi besides, where
x = mu + L xi, knows more, and the posterior of the rest is that of P K P with P = 1 - Q Q^T, so that

    tr L M L <= tr L Q Q^T L + tr L P K P (P K P + eps)^-1 P L.

With weights w_i = |L P v_i|^2 and eigenvalues k_i of P K P, and g_c(x) = min(x, c): f(x) <= (1 + eps / c) f(g_c(x)),
since f <= 1 = (1 + eps / c) f(c), and f(g_c) is concave, hence

    sum_i w_i f(k_i) <= (1 + eps / c) W f(T_c / W),   T_c = sum_i w_i g_c(k_i),   W = sum_i w_i.

|L P s|^2 = u^T J_j L P C P L J_j^T u for a further pull has the mean tr (P K P) P C P, which exceeds T_c, and T_c's own
probes have the norm c ||C|| at most, so that `trace_interval` bounds T_c from above: however few directions carry
nearly all of K, a hidden one counts c at most. That is why two probes are enough where T_c is many times c. The same
with all pulls and Q = 0 counts where that is less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg import Interval
from riskaudit.linalg.krylov.traces import trace_interval
from riskaudit.priors import BoundPrior
from riskaudit.results import Status
from riskaudit.sensitivity.information import Information

# Pulls that measure what the subspace of the others leaves.
MEASURING = 2
# c in units of eps.
CAPS = (1.0, 3.0, 10.0, 30.0)
# Events that a sample's failure is shared among: the trace's two ends, and for every cap one of what is left and one
# of all.
EVENTS = 2 + 2 * len(CAPS)
SMALLEST_SHIFT = 1e-100


@final
class PulledInformation(Information):
    """Of one sample that leaves with others, for an attacker who knows these.

    Args:
        left: |L P s|^2 of every measuring pull, 1 / data units^2 times the prior's variance in its units.
        subspace: tr L Q Q^T L, what the subspace may reveal at most.
        total: tr C in the prior's units, d.
        norm: the largest eigenvalue of C in the prior's units.
        whole: |L s|^2 of every pull.
        tau: the prior's standard deviation.
        failure: probability that an interval misses.
        white: whether the prior is isotropic.
    """

    status: Status = "bracketed"

    def __init__(
        self,
        left: Sequence[float],
        subspace: float,
        total: float,
        norm: float,
        whole: Sequence[float],
        tau: float,
        failure: float,
        white: bool,
    ) -> None:
        self.tau, self.total, self.failure = tau, total, failure / EVENTS
        self._left, self._count, self._subspace, self._norm = sum(left) / len(left), len(left), subspace, norm
        self._whole, self._pulls, self._white = sum(whole) / len(whole), len(whole), white

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
        return trace_interval(self._whole, self._whole, self._pulls, math.inf, 2 * self.failure)

    def _dimension(self, sigma: float) -> Interval:
        """tr L K (K + eps)^-1 L."""
        ratio = sigma / self.tau
        eps = max(ratio * ratio, SMALLEST_SHIFT)
        if not math.isfinite(self._left) or not math.isfinite(self._whole):
            return Interval(self.total, 0.0, self.total)
        rest = max(0.0, self.total - self._subspace)
        left, whole = (self._left, self._count), (self._whole, self._pulls)
        beside = [self._subspace + self._high(*left, eps, rest, cap) for cap in CAPS]
        high = min(self.total, *beside, *(self._high(*whole, eps, self.total, cap) for cap in CAPS))
        trace_low, trace_high = self._trace_ends()
        # Every eigenvalue is the trace at most: f(x) >= x / (trace + eps).
        low = min(high, trace_low / (trace_high + eps) if self._white and math.isfinite(trace_high) else 0.0)
        value = min(high, max(low, _concave(self._left, rest, eps) + _concave(self._whole, self._subspace, eps)))
        return Interval(value, low, high)

    def _high(self, mean: float, count: int, eps: float, weight: float, cap: float) -> float:
        """An upper end of sum_i w_i f(k_i) with weights of this sum, from the mean over so many pulls."""
        if not weight:
            return 0.0
        _, trace = trace_interval(mean, mean, count, cap * eps * self._norm, 2 * self.failure)
        if not math.isfinite(trace):
            return weight
        high = (1 + 1 / cap) * _concave(trace, weight, eps)
        # min(x / eps, 1) >= f(x).
        return min(weight, high, trace / eps if cap == 1 else high)


def pulled_information(pulled: Tensor, earlier: Tensor | None, prior: BoundPrior, failure: float) -> list[Information]:
    """Information at n samples from pulls of standard normal vectors, independent of each other.

    Args:
        pulled: J_j^T u of every sample, [n, d, k], k above `MEASURING`: the last ones measure.
        earlier: pulls [n, d, m] that the measuring ones are independent of as well; None without.
        prior: at the samples.
        failure: probability, per sample, that an interval misses.
    """
    taus, units = prior.std.tolist(), prior.in_its_units()
    rooted = _each(units.root, pulled)
    basis_of = rooted[..., :-MEASURING]
    if earlier is not None:
        basis_of = torch.cat([_each(units.root, earlier), basis_of], dim=-1)
    basis = torch.linalg.qr(basis_of.double())[0]
    measuring = rooted[..., -MEASURING:].double()
    left = measuring - basis @ (basis.mT @ measuring)
    # Once more, for the rounding of the first time.
    left = left - basis @ (basis.mT @ left)
    remaining, whole = (_each(units.root, each.to(pulled)).double() for each in (left, rooted))
    subspace = _each(units.root, basis.to(pulled)).double().square().sum((1, 2)).clamp_max(pulled.shape[1])
    rows = zip(
        remaining.square().sum(1).tolist(), subspace.tolist(), units.largest.tolist(), whole.square().sum(1).tolist(),
        taus, strict=True,
    )  # fmt: skip
    return [
        PulledInformation(
            each_left, of_subspace, float(pulled.shape[1]), norm, each_whole, tau, failure, units.isotropic
        )
        for each_left, of_subspace, norm, each_whole, tau in rows
    ]


def _each(apply: object, columns: Tensor) -> Tensor:
    """A map of [n, d] on columns [n, d, k]."""
    assert callable(apply)
    return torch.stack([apply(column) for column in columns.unbind(-1)], dim=-1)


def _concave(trace: float, count: float, eps: float) -> float:
    """The largest sum of ``count`` values f(x) whose x add up to a trace."""
    return count * trace / (trace + count * eps) if trace > 0 and count > 0 else 0.0
