"""What proxies, metrics and attacks are called and what their numbers mean, as it travels with a result.

The words stand on the classes that compute the numbers; whoever reads a result takes them from here and has no copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from riskaudit.results.base import Record

Riskier: TypeAlias = Literal["higher", "lower"]
# The proxies that decide, which every audit compares, and which end of each is the greater risk.
COMPARED: dict[str, Riskier] = {
    "revealed_fraction": "higher",
    "posterior_rmse": "lower",
    "informed_revealed_fraction": "higher",
    "informed_posterior_rmse": "lower",
}


WRONG_SIGN, DOUBTFUL_SIGN = " wrong sign", " wrong sign?"


class ProxyInfo(Record):
    """What a proxy is, so that a report needs nothing but this file.

    Audits of older versions lack ``short_title``, ``formula``, ``order`` and ``predicts_rmse``.

    Attributes:
        id: key under which samples have its number.
        title: its name for readers.
        short_title: its name in the heads of tables.
        units: units of its number, in words.
        source: where it comes from: a paper, or "baseline".
        riskier: which end is the greater risk.
        summary: what its number means, in words.
        formula: the one that was computed.
        order: its place in tables, least first.
        predicts_rmse: whether it foretells an attack's RMSE in data units, so that a ratio with it has a meaning.
        reason: one sentence on why no sample of this audit has a value; null where some have.
    """

    id: str
    title: str
    short_title: str = ""
    units: str
    source: str
    riskier: Riskier
    summary: str
    formula: str = ""
    order: int = 1000
    predicts_rmse: bool = False
    reason: str | None = None


class MetricInfo(Record):
    """What a metric is.

    Attributes:
        id: key under which attacks have its number.
        title: its name for readers.
        units: units of its number, in words.
        source: where it comes from.
        higher_is_better: whether a higher value is a better reconstruction, so a worse leak.
    """

    id: str
    title: str
    units: str
    source: str
    higher_is_better: bool


class AttackInfo(Record):
    """What an attack is.

    Attributes:
        id: name that rows of attacks give it.
        title: its name for readers.
        source: where it comes from.
        summary: what it does, in words.
        matching: loss between releases that it minimises, where it is one that a proxy is made for; else null.
        oracle_start: whether it starts at the truth, which no attacker has.
    """

    id: str
    title: str
    source: str
    summary: str
    matching: Literal["l2", "cosine"] | None = None
    oracle_start: bool = False


def riskier_end(proxy: str, infos: Iterable[ProxyInfo], default: Riskier = "lower") -> Riskier:
    """Which end of a proxy is the greater risk; of the two that decide, no file has a say.

    Args:
        proxy: its id.
        infos: what a result says of its proxies.
        default: of a proxy that isn't among them.
    """
    if proxy in COMPARED:
        return COMPARED[proxy]
    return next((info.riskier for info in infos if info.id == proxy), default)


def sign_mark(
    correlation: float, low: float | None, high: float | None, riskier: Riskier, higher_is_better: bool
) -> str:
    """What to write behind a proxy's rank correlation with a metric whose sign contradicts what the proxy declares.

    A proxy that is riskier when higher should rise with metrics of which a higher value is a better reconstruction, and
    fall with errors; one that is riskier when lower the other way round. Nothing where it does, or where there is no
    correlation.

    Args:
        correlation: in [-1, 1].
        low: end of its interval, as ``high``; None where there is none.
        high: where the interval holds 0 the mark says that the sign is in doubt.
        riskier: which end of the proxy is the greater risk.
        higher_is_better: of the metric, see `MetricInfo`.
    """
    expected = (1 if riskier == "higher" else -1) * (1 if higher_is_better else -1)
    if correlation * expected >= 0:
        return ""
    return WRONG_SIGN if low is not None and high is not None and (low > 0 or high < 0) else DOUBTFUL_SIGN
