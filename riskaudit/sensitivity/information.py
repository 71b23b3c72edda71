"""How much a release tells of one sample, at any level of Gaussian noise.

The prior's covariance is tau^2 C with tr C = d, so that tau is the error of a guess at its mean. With K = L H L,
C = L L, w_i = ||L v_i||^2 for K's eigenvectors v_i, and eps = sigma^2 / tau^2 (docs/theory.md, section 2)

    revealed_fraction = sum_i w_i k_i / (k_i + eps) / sum_i w_i,    posterior_rmse = tau sqrt(1 - revealed_fraction).

Where the prior is isotropic, L = 1, K = H and all w_i = 1. Of a block of coordinates, such as one sample of several
that leave together, the same holds with the block's own tau and w_i = ||(L v_i)[block]||^2. Exact where all eigenvalues
are known, else an interval.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from typing_extensions import override

from riskaudit.linalg import BlockTraces, Interval, TraceProbes
from riskaudit.results import NoiseTarget, Status

Eigenvalues = npt.NDArray[np.float64]

# Noise below or above these, times the square root of l_1 and tau, is beyond float64's reach.
SEARCH_DECADES = 12
# The mean eigenvalue of K relative to ||C|| l_1, for the range of a figure.
TYPICAL_SHARE = 1e-4
# Traces of functions with a pole at -eps stay finite down to here.
SMALLEST_SHIFT = 1e-100


def posterior_rmse(
    eigenvalues: Eigenvalues, sigma: float, tau: float, weights: Eigenvalues | None = None
) -> npt.NDArray[np.float64]:
    """The error that is left, over the last axis of K's eigenvalues [..., d]; weights [..., d] are 1 if not given."""
    with np.errstate(over="ignore"):
        shares = 1 / (1 + _signal_to_noise(eigenvalues, sigma, tau))
    return np.asarray(tau * np.sqrt(np.average(shares, axis=-1, weights=weights)))


def revealed_fraction(
    eigenvalues: Eigenvalues, sigma: float, tau: float, weights: Eigenvalues | None = None
) -> npt.NDArray[np.float64]:
    """The share of the prior's variance that is gone, likewise."""
    with np.errstate(over="ignore", divide="ignore"):
        shares = 1 / (1 + 1 / _signal_to_noise(eigenvalues, sigma, tau))
    return np.minimum(1.0, np.average(shares, axis=-1, weights=weights))


def _signal_to_noise(eigenvalues: Eigenvalues, sigma: float, tau: float) -> Eigenvalues:
    """Eigenvalues over eps: infinite, not an error, where noise is absurdly small; 0 where the eigenvalue is."""
    return np.asarray(np.square(np.sqrt(eigenvalues) * min(tau / sigma, 1e300)))


class Information(ABC):
    """What the release of one sample tells, as a function of the noise.

    Attributes:
        tau: the prior's standard deviation, per input coordinate.
        status: "exact" or "bracketed".
    """

    tau: float
    status: Status

    @abstractmethod
    def revealed(self, sigma: float) -> Interval:
        """revealed_fraction at Gaussian noise of standard deviation sigma."""

    @abstractmethod
    def error(self, sigma: float) -> Interval:
        """posterior_rmse at Gaussian noise of standard deviation sigma."""

    @property
    @abstractmethod
    def scale(self) -> tuple[float, float]:
        """A typical eigenvalue of K and an upper end of the largest: where noise begins and ends to matter.

        Times tau, their roots are standard deviations of noise.
        """

    @property
    @abstractmethod
    def trace(self) -> Interval | None:
        """tr H, where L = 1."""

    @final
    def noise_for(self, target: float) -> NoiseTarget:
        """Smallest Gaussian noise std for which posterior_rmse is sure to reach ``target``.

        posterior_rmse rises with sigma from tau sqrt(share of zero eigenvalues) to tau. A target at or above
        tau can't be reached ("not_applicable"); one that holds without noise needs a std of 0. Of an interval
        the lower end counts; it rises with sigma too, so it holds at the std found with the confidence that
        it has at a single one.
        """
        if target >= self.tau:
            return NoiseTarget(target_rmse=target, std=None, status="not_applicable")
        typical, largest = self.scale
        if not math.isfinite(largest):
            return NoiseTarget(target_rmse=target, std=None, status="not_converged")
        if largest == 0:
            return NoiseTarget(target_rmse=target, std=0.0, status=self.status)

        def excess(log_sigma: float) -> float:
            return self.error(math.exp(log_sigma)).low - target

        start = math.log(self.tau * math.sqrt(max(typical, TYPICAL_SHARE * largest)))
        root = _root(excess, start, math.log(self.tau * math.sqrt(largest)))
        if root == math.inf:
            return NoiseTarget(target_rmse=target, std=None, status="not_converged")
        return NoiseTarget(target_rmse=target, std=math.exp(root), status=self.status)


def _root(excess: Callable[[float], float], start: float, middle: float) -> float:
    """Where a rising function becomes positive, within `SEARCH_DECADES` of ``middle``.

    Minus infinity where it is positive all along, infinity where it never is.

    Steps from ``start`` enclose it, each twice as long as the one before, since most roots are near.
    """
    reach = SEARCH_DECADES * math.log(10)
    first, last, step = middle - reach, middle + reach, math.log(10)
    inner = min(max(start, first), last)
    is_above = excess(inner) >= 0
    while inner > first if is_above else inner < last:
        outer = max(first, inner - step) if is_above else min(last, inner + step)
        if (excess(outer) >= 0) != is_above:
            root: float = brentq(excess, min(inner, outer), max(inner, outer), xtol=1e-12, rtol=1e-14)
            return root
        inner, step = outer, 2 * step
    return -math.inf if is_above else math.inf


@final
class ExactInformation(Information):
    """From all eigenvalues of K.

    Args:
        eigenvalues: k_i, [d].
        tau: the prior's standard deviation.
        weights: w_i, [d]; None where L = 1, so that all are 1.
        unit: the tau that K is scaled by, of a sample that leaves with others; its own where it isn't given.
    """

    status: Status = "exact"

    def __init__(
        self, eigenvalues: Eigenvalues, tau: float, weights: Eigenvalues | None = None, unit: float | None = None
    ) -> None:
        self.eigenvalues, self.tau, self.weights = eigenvalues, tau, weights
        self.unit = tau if unit is None else unit

    @override
    def revealed(self, sigma: float) -> Interval:
        return _exactly(revealed_fraction(self.eigenvalues, sigma, self.unit, self.weights))

    @override
    def error(self, sigma: float) -> Interval:
        error = _exactly(posterior_rmse(self.eigenvalues, sigma, self.unit, self.weights))
        return error if self.unit == self.tau else error.map((self.tau / self.unit).__mul__)

    @property
    @override
    def scale(self) -> tuple[float, float]:
        # Under a correlated prior most eigenvalues may be next to nothing.
        typical = np.median(self.eigenvalues) if self.weights is None else self.eigenvalues.mean()
        return float(typical), float(self.eigenvalues.max())

    @property
    @override
    def trace(self) -> Interval | None:
        return None if self.weights is not None else _exactly(self.eigenvalues.sum())


@final
class BracketedInformation(Information):
    """From random probes of K.

    Args:
        traces: of K, or of one of its blocks.
        tau: the prior's standard deviation.
        unit: see `ExactInformation`.
        informed: of an attacker who knows all other samples: never less than without them, so that its ends are ends,
            and its value is one that isn't exceeded as far as the interval allows.
    """

    status: Status = "bracketed"

    def __init__(
        self,
        traces: TraceProbes | BlockTraces,
        tau: float,
        unit: float | None = None,
        informed: Information | None = None,
    ) -> None:
        self.traces, self.tau, self.informed = traces, tau, informed
        self.unit = tau if unit is None else unit

    def _eps(self, sigma: float) -> float:
        ratio = sigma / self.unit
        # Not ratio**2: floats raise OverflowError there instead of giving infinity.
        return max(ratio * ratio, SMALLEST_SHIFT)

    @override
    def revealed(self, sigma: float) -> Interval:
        found = self.traces.effective_dimension(self._eps(sigma)).map(lambda end: min(1.0, end / self.traces.total))
        if self.informed is None:
            return found
        known = self.informed.revealed(sigma)
        high = min(found.high, known.high)
        low = min(found.low, high)
        return Interval(max(low, min(found.value, known.value)), low, high)

    @override
    def error(self, sigma: float) -> Interval:
        left = self.traces.remaining(self._eps(sigma))
        found = left.map(lambda end: self.tau * math.sqrt(min(1.0, end / self.traces.total)))
        if self.informed is None:
            return found
        known = self.informed.error(sigma)
        low = max(found.low, known.low)
        high = max(found.high, low)
        return Interval(min(high, max(found.value, known.value)), low, high)

    @property
    @override
    def scale(self) -> tuple[float, float]:
        """The typical eigenvalue is the mean, or a share of the largest that is common for images."""
        trace, largest = self.trace, self.traces.largest
        return TYPICAL_SHARE * largest if trace is None else trace.value / self.traces.total, largest

    @property
    @override
    def trace(self) -> Interval | None:
        return self.traces.trace() if isinstance(self.traces, TraceProbes) and self.traces.white else None


@final
class RaisedInformation(Information):
    """Of an attacker who knows all other samples, never less than what one who knows none of them is told.

    Each sample's block of the joint posterior covariance is at least its covariance given all others (docs/theory.md,
    section 7), so that the ends of the one's intervals are ends of the other's.

    Args:
        informed: read off probes of the sample's own block.
        outsider: read off probes of the whole, within the ends of ``informed``.
    """

    status: Status = "bracketed"

    def __init__(self, informed: Information, outsider: Information) -> None:
        self.informed, self.outsider, self.tau = informed, outsider, informed.tau

    @override
    def revealed(self, sigma: float) -> Interval:
        found = self.informed.revealed(sigma)
        low = min(max(found.low, self.outsider.revealed(sigma).low), found.high)
        return Interval(max(found.value, low), low, found.high)

    @override
    def error(self, sigma: float) -> Interval:
        found = self.informed.error(sigma)
        high = max(min(found.high, self.outsider.error(sigma).high), found.low)
        return Interval(min(found.value, high), found.low, high)

    @property
    @override
    def scale(self) -> tuple[float, float]:
        return self.informed.scale

    @property
    @override
    def trace(self) -> Interval | None:
        return self.informed.trace


def _exactly(number: np.floating | npt.NDArray[np.float64]) -> Interval:
    value = float(number)
    return Interval(value, value, value)
