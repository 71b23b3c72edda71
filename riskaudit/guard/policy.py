"""Limits on what a release may reveal, and the decision that follows: a pure function of the result.

Fails closed: a sample without a usable number is over every limit, and so is an undefended release,
whose reference noise only ranks samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from riskaudit.errors import SettingsError
from riskaudit.results import AuditResult, Estimate, PolicyOutcome, SampleRow


@dataclass(frozen=True)
class Policy:
    """Limits per sample.

    Attributes:
        max_revealed: largest revealed_fraction, 0 to 1.
        min_rmse: smallest posterior_rmse, data units per input coordinate.
    """

    max_revealed: float | None = None
    min_rmse: float | None = None

    def __post_init__(self) -> None:
        if self.max_revealed is not None and not 0 <= self.max_revealed <= 1:
            raise SettingsError(f"expected max_revealed between 0 and 1, found {self.max_revealed}")
        if self.min_rmse is not None and not (math.isfinite(self.min_rmse) and self.min_rmse >= 0):
            raise SettingsError(f"expected min_rmse of at least 0, found {self.min_rmse}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Policy:
        """From a configuration table.

        Raises:
            SettingsError: an unknown limit or one that isn't a number.
        """
        known = [field.name for field in fields(cls)]
        for name, value in values.items():
            if name not in known:
                raise SettingsError(f"expected policy limits {', '.join(known)}, found {name!r}")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SettingsError(f"expected a number for the policy limit {name}, found {value!r}")
        return cls(**{name: float(value) for name, value in values.items()})

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def decide(self, result: AuditResult, source: str = "policy") -> PolicyOutcome:
        """Hold an audit against the limits; ``source`` says where they came from."""
        if not self.limits:
            return PolicyOutcome(decision="warn", reasons=["the policy sets no limit"], limits={}, source=source)
        unassessed = [row.id for row in result.samples if not self._assessed(row)]
        revealing = [row.id for row in result.samples if self._over_revealed(row)]
        close = [row.id for row in result.samples if self._under_rmse(row)]
        reasons = []
        if not result.release.defended:
            reasons.append("the release is undefended: assume full disclosure")
        total = len(result.samples)
        if not total:
            reasons.append("no sample was audited")
        if revealing:
            reasons.append(f"{len(revealing)} of {total} samples reveal more than {self.max_revealed:g} of the input")
        if close:
            reasons.append(f"{len(close)} of {total} samples can be reconstructed to an RMSE below {self.min_rmse:g}")
        if unassessed:
            reasons.append(f"{len(unassessed)} of {total} samples could not be assessed")
        exceeded = {*unassessed, *revealing, *close}
        return PolicyOutcome(
            decision="block" if reasons else "allow",
            reasons=reasons or [f"all {total} samples are within the limits"],
            limits=self.limits,
            source=source,
            exceeded=[row.id for row in result.samples if row.id in exceeded],
        )

    def _assessed(self, row: SampleRow) -> bool:
        """Whether every limit has a usable number to be held against."""
        needed = {"max_revealed": "revealed_fraction", "min_rmse": "posterior_rmse"}
        return all(_usable(row.proxies.get(needed[limit])) for limit in self.limits)

    def _over_revealed(self, row: SampleRow) -> bool:
        limit = self.max_revealed
        if limit is None:
            return False
        return any(_worst(one, one.high, 1.0) > limit for one in _estimates(row, "revealed_fraction"))

    def _under_rmse(self, row: SampleRow) -> bool:
        limit = self.min_rmse
        if limit is None:
            return False
        return any(_worst(one, one.low, 0.0) < limit for one in _estimates(row, "posterior_rmse"))


def _estimates(row: SampleRow, proxy: str) -> list[Estimate]:
    """What is known of a proxy: as certified, and where there is a calibration, as calibrated."""
    found = (row.proxies.get(proxy), row.calibrated.get(proxy))
    return [one for one in found if one is not None and _usable(one)]


def _usable(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.reliable is not None


def _worst(estimate: Estimate, end: float | None, extreme: float) -> float:
    """The cautious ``end`` of an interval, else the value; one known from the other side only may be ``extreme``."""
    if end is not None:
        return end
    return extreme if estimate.status == "bracketed" or estimate.value is None else estimate.value
