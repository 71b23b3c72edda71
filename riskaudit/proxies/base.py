"""The proxy interface: one number per sample, with interval and status, read off a linearisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from riskaudit.errors import SettingsError
from riskaudit.results import Estimate, ProxyInfo, SolverEvidence, Status
from riskaudit.sensitivity.estimates import estimate
from riskaudit.sensitivity.linearisation import Linearisation


@dataclass(frozen=True)
class ProxyScores:
    """One estimate per sample, or per upload, whose samples share it; ``reason`` says why some or all are missing."""

    estimates: tuple[Estimate, ...]
    reason: str | None = None
    evidence: tuple[SolverEvidence, ...] | None = None

    def for_samples(self, count: int) -> ProxyScores:
        """One estimate per sample of ``count`` in all."""
        size = count // len(self.estimates)
        if size == 1:
            return self
        evidence = None if self.evidence is None else tuple(each for each in self.evidence for _ in range(size))
        return ProxyScores(tuple(each for each in self.estimates for _ in range(size)), self.reason, evidence)


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
        joint_only: whether it has a meaning only where several samples leave together.
        text_only: whether it has a meaning only of texts.
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
    joint_only: ClassVar[bool] = False
    text_only: ClassVar[bool] = False

    @abstractmethod
    def score(self, linearisation: Linearisation) -> ProxyScores:
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


def proxies_for(*, joint: bool, text: bool = False) -> dict[str, Proxy]:
    """The proxies that have a meaning where several samples leave together, or each alone, of texts or of others."""
    return {
        name: proxy
        for name, proxy in PROXIES.items()
        if (joint or not proxy.joint_only) and (text or not proxy.text_only)
    }


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


def not_applicable(linearisation: Linearisation, reason: str) -> ProxyScores:
    """No value for any sample, and why."""
    return ProxyScores((Estimate(value=None, status="not_applicable"),) * len(linearisation), reason)


def needs_traces(linearisation: Linearisation) -> ProxyScores:
    """No value, since the plan computes neither all eigenvalues of H nor their traces, and why."""
    why = f"the solver is {linearisation.plan.solver} ({linearisation.plan.solver_reason})"
    return not_applicable(
        linearisation,
        f"needs traces over all eigenvalues of H, and {why}; `solver=lanczos` brackets them, dense is exact",
    )
