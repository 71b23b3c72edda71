"""The proxy interface: one number per sample, with interval and status, read off a linearisation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from riskaudit.errors import SettingsError
from riskaudit.linalg import Interval
from riskaudit.proxies.linearisation import Linearisation
from riskaudit.results import RELIABLE, Estimate, ProxyInfo, SolverEvidence, Status

# The widest interval with a point value: its share of the range of what is possible, or the ratio of its ends.
WIDEST, WIDEST_RATIO = 0.25, 10.0


@dataclass(frozen=True)
class ProxyScores:
    """One estimate per sample; ``reason`` says why there are none, or why some are missing."""

    estimates: tuple[Estimate, ...]
    reason: str | None = None
    evidence: tuple[SolverEvidence, ...] | None = None


class Proxy(ABC):
    """A number per sample that foretells how well its input can be reconstructed.

    Attributes:
        id: the key in audit.json.
        title: for readers.
        short_title: for the heads of tables.
        units: of the number.
        source: where it is defined or what it is derived from.
        riskier: whether a higher or a lower number is the greater risk.
        summary: what it is, one sentence in plain words.
        formula: what `score` computes.
        order: its place in tables, least first.
        predicts_rmse: whether it foretells an attack's RMSE per input coordinate, so that their ratio has a meaning.
        few_products: whether a few products for the largest eigenvalue are all that it needs.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    short_title: ClassVar[str]
    units: ClassVar[str]
    source: ClassVar[str]
    riskier: ClassVar[Literal["higher", "lower"]]
    summary: ClassVar[str]
    formula: ClassVar[str]
    order: ClassVar[int]
    predicts_rmse: ClassVar[bool] = False
    few_products: ClassVar[bool] = False

    @abstractmethod
    def score(self, at: Linearisation) -> ProxyScores:
        """The proxy for every sample of a linearisation."""

    def info(self, reason: str | None = None) -> ProxyInfo:
        """What audit.json says of this proxy."""
        return ProxyInfo(
            id=self.id,
            title=self.title,
            short_title=self.short_title,
            units=self.units,
            source=self.source,
            riskier=self.riskier,
            summary=self.summary,
            formula=self.formula,
            order=self.order,
            predicts_rmse=self.predicts_rmse,
            reason=reason,
        )


PROXIES: dict[str, Proxy] = {}


def register(proxy: type[Proxy]) -> type[Proxy]:
    """Class decorator: make a proxy part of every audit."""
    if proxy.id in PROXIES:
        raise SettingsError(f"the proxy {proxy.id!r} is registered twice")
    PROXIES[proxy.id] = proxy()
    return proxy


def estimate(value: float | None, status: Status, low: float | None = None, high: float | None = None) -> Estimate:
    """An estimate in which whatever isn't finite is None; an answer that isn't finite has failed.

    An exact value needs no interval.
    """
    finite = [number if number is not None and math.isfinite(number) else None for number in (value, low, high)]
    if value is not None and finite[0] is None and status in RELIABLE:
        status = "failed"
    if status == "exact":
        return Estimate(value=finite[0], status=status)
    return Estimate(value=finite[0], low=finite[1], high=finite[2], status=status)


def exact(values: Tensor) -> ProxyScores:
    """Exact values [B]."""
    return ProxyScores(tuple(estimate(value, "exact") for value in values.tolist()))


def graded(
    value: Tensor, status: Sequence[Status], low: Tensor | None = None, high: Tensor | None = None
) -> ProxyScores:
    """Values [B] with a status each, and intervals where known; a singular one has no value."""
    count = len(status)
    lows = low.tolist() if low is not None else [None] * count
    highs = high.tolist() if high is not None else [None] * count
    return ProxyScores(
        tuple(
            Estimate(value=None, status="singular") if state == "singular" else estimate(number, state, least, most)
            for number, state, least, most in zip(value.tolist(), status, lows, highs, strict=True)
        )
    )


def not_applicable(at: Linearisation, reason: str) -> ProxyScores:
    """No value for any sample, and why."""
    return ProxyScores((Estimate(value=None, status="not_applicable"),) * len(at), reason)


def needs_traces(at: Linearisation) -> ProxyScores:
    """No value, since the plan computes neither all eigenvalues of H nor their traces, and why."""
    why = f"the solver is {at.plan.solver} ({at.plan.solver_reason})"
    return not_applicable(
        at, f"needs traces over all eigenvalues of H, and {why}; --solver lanczos brackets them, dense is exact"
    )


def interval(found: Interval, status: Status, nothing: tuple[float, float]) -> Estimate:
    """A bracketed (or exact) number; one that says no more than ``nothing`` did not converge.

    An end that isn't finite is unknown, and so is the value then. Inside a wide interval no value is likelier than
    another: networks whose inputs are revealed to 0.42 and to 1.0 had the same interval, 0.12 to 1, after 3 products.
    So there is a value only where the interval takes up at most `WIDEST` of the range of what is possible, or without
    an upper end of that range, where its ends are within a factor of `WIDEST_RATIO`.
    """
    if status == "exact":
        return estimate(found.value, "exact")
    low, high = nothing
    if found.low <= low and found.high >= high:
        return estimate(None, "not_converged", found.low, found.high)
    # A value at the very end of what is possible is none unless the interval says so.
    known = math.isfinite(found.high) and (found.value > low or found.high <= low)
    if math.isfinite(high):
        known = known and found.high - found.low <= WIDEST * (high - low)
    else:
        known = known and found.high <= WIDEST_RATIO * found.low
    return estimate(found.value if known else None, "bracketed", found.low, found.high)
