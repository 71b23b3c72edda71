"""Which solvers a linearisation uses, how far they go, and why."""

from __future__ import annotations

import time
from dataclasses import dataclass

from riskaudit.linalg.active import Deadline


@dataclass(frozen=True)
class Plan:
    """Solvers and their limits for a whole audit.

    Attributes:
        solver: name in `riskaudit.linalg.EIGENVALUE_SOLVERS`.
        solver_reason: why, for the report.
        inverse: name in `riskaudit.linalg.INVERSE_SOLVERS`, or "quadrature" to bracket norms of solutions
            without solving.
        inverse_reason: why, for the report.
        tolerance: relative error at which an iteration has converged.
        max_matvecs: products per sample and iteration at most.
        precision: relative width at which an interval is narrow enough; None for no such aim.
        max_probes: random probes per sample at most, for traces.
        failure: probability, per sample, that one of its certified ends is wrong.
        width: samples, or copies of one, that fit in memory at once.
        proxies: ids of the proxies wanted.
        max_probe_matvecs: products per probe at most, where it isn't the same.
        max_probe_products: products of all probes of a sample (or an upload) after which none is added; None for no
            limit.
        thresholds: revealed fractions that decide: an interval on one side of each may be coarse; empty for none.
        least_error: a posterior error that decides likewise.
        of_samples: for single samples of an upload of several, where it isn't the same.
    """

    solver: str
    solver_reason: str
    inverse: str
    inverse_reason: str
    tolerance: float
    max_matvecs: int
    precision: float | None
    max_probes: int
    failure: float
    width: int
    proxies: frozenset[str]
    max_probe_matvecs: int | None = None
    max_probe_products: int | None = None
    thresholds: tuple[float, ...] = ()
    least_error: float | None = None
    of_samples: Plan | None = None

    def thresholds_at(self, tau: float) -> tuple[float, ...]:
        """Those for a sample whose prior has this standard deviation."""
        if self.least_error is None:
            return self.thresholds
        # posterior_rmse^2 = tau^2 (1 - revealed_fraction)
        return *self.thresholds, max(0.0, 1 - (self.least_error / tau) ** 2)

    @property
    def only_brackets(self) -> bool:
        """Whether all comes from Lanczos iterations, which allow for the rounding of products; other solvers don't."""
        return (self.solver, self.inverse) == ("lanczos", "quadrature")


class Clock:
    """The time that a batch of samples may take, handed out in shares.

    Args:
        seconds: from now on; None for as long as it takes.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self._end is not None

    def share(self, part: float) -> Deadline | None:
        """A deadline after this part of the time that is left; None without a limit."""
        if self._end is None:
            return None
        now = time.monotonic()
        end = now + part * max(0.0, self._end - now)
        return lambda: time.monotonic() >= end
