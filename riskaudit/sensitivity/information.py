"""How much a release tells of one sample, at any level of Gaussian noise.

Isotropic prior: revealed_fraction = d_eff / d and posterior_rmse = tau sqrt(1 - revealed_fraction), with
d_eff = sum_i l_i / (l_i + eps) and eps = sigma^2 / tau^2 (docs/theory.md, section 2). Correlated prior of covariance C:
posterior_rmse^2 = sum_i w_i sigma^2 / (k_i + sigma^2) / d over the eigenvalues of K = L H L, tau^2 = tr C / d, and
revealed_fraction = 1 - posterior_rmse^2 / tau^2. Exact where all eigenvalues are known, else an interval.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from riskaudit.linalg import Interval, WeightedTraces
from riskaudit.results import NoiseTarget, Status
from riskaudit.sensitivity.brackets import SampleTraces

Eigenvalues = npt.NDArray[np.float64]

# Noise below or above these, times the square root of l_1 and tau, is beyond float64's reach.
SEARCH_DECADES = 12
# The mean eigenvalue of K relative to ||C|| l_1, for the range of a figure.
TYPICAL_SHARE = 1e-4
# Traces of functions with a pole at -eps stay finite down to here.
SMALLEST_SHIFT = 1e-100


def posterior_rmse(eigenvalues: Eigenvalues, sigma: float, tau: float) -> npt.NDArray[np.float64]:
    """sqrt(sum_i sigma^2 / (l_i + sigma^2 / tau^2) / d) over the last axis of eigenvalues [..., d]."""
    with np.errstate(over="ignore"):
        shares = 1 / (1 + _signal_to_noise(eigenvalues, sigma, tau))
    return np.asarray(tau * np.sqrt(shares.mean(-1)))


def revealed_fraction(eigenvalues: Eigenvalues, sigma: float, tau: float) -> npt.NDArray[np.float64]:
    """d_eff / d = sum_i l_i / (l_i + sigma^2 / tau^2) / d over the last axis of eigenvalues [..., d]."""
    with np.errstate(over="ignore", divide="ignore"):
        shares = 1 / (1 + 1 / _signal_to_noise(eigenvalues, sigma, tau))
    return np.asarray(shares.mean(-1))


def _signal_to_noise(eigenvalues: Eigenvalues, sigma: float, tau: float) -> Eigenvalues:
    """Eigenvalues times tau^2 / sigma^2: infinite, not an error, where noise is absurdly small; 0 where l is."""
    return np.asarray(np.square(np.sqrt(eigenvalues) * min(tau / sigma, 1e300)))


class Information(ABC):
    """What the release of one sample tells, as a function of the noise.

    Attributes:
        tau: the prior's standard deviation; with a correlated prior its own RMSE, sqrt(tr C / d).
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
        """A typical eigenvalue and an upper end of the largest: where noise begins and ends to matter.

        Times tau, their roots are standard deviations of noise; those of K are divided by tau^2 for that.
        """

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
        _, largest = self.scale
        if not math.isfinite(largest):
            return NoiseTarget(target_rmse=target, std=None, status="not_converged")
        if largest == 0:
            return NoiseTarget(target_rmse=target, std=0.0, status=self.status)
        middle, reach = math.log(self.tau * math.sqrt(largest)), SEARCH_DECADES * math.log(10)

        def excess(log_sigma: float) -> float:
            return self.error(math.exp(log_sigma)).low - target

        if excess(middle - reach) >= 0:
            return NoiseTarget(target_rmse=target, std=0.0, status=self.status)
        root = brentq(excess, middle - reach, middle + reach, xtol=1e-12, rtol=1e-14)
        return NoiseTarget(target_rmse=target, std=math.exp(root), status=self.status)


@final
class ExactInformation(Information):
    """From all eigenvalues [d] of a sample."""

    status: Status = "exact"

    def __init__(self, eigenvalues: Eigenvalues, tau: float) -> None:
        self.eigenvalues, self.tau = eigenvalues, tau

    def revealed(self, sigma: float) -> Interval:
        """See `Information.revealed`."""
        value = float(revealed_fraction(self.eigenvalues, sigma, self.tau))
        return Interval(value, value, value)

    def error(self, sigma: float) -> Interval:
        """See `Information.error`."""
        value = float(posterior_rmse(self.eigenvalues, sigma, self.tau))
        return Interval(value, value, value)

    @property
    def scale(self) -> tuple[float, float]:
        """See `Information.scale`."""
        return float(np.median(self.eigenvalues)), float(self.eigenvalues.max())


@final
class BracketedInformation(Information):
    """From random probes and Ritz values."""

    status: Status = "bracketed"

    def __init__(self, traces: SampleTraces, tau: float) -> None:
        self.traces, self.tau = traces, tau
        # The last level of noise that was asked for, and the answer: errors ask for it again.
        self._last: tuple[float, Interval] | None = None

    def revealed(self, sigma: float) -> Interval:
        """See `Information.revealed`."""
        if self._last is None or self._last[0] != sigma:
            ratio = sigma / self.tau
            found = self.traces.effective_dimension(max(ratio * ratio, SMALLEST_SHIFT))
            ends = (min(1.0, end / self.traces.dimension) for end in (found.value, found.low, found.high))
            self._last = sigma, Interval(*ends)
        return self._last[1]

    def error(self, sigma: float) -> Interval:
        """See `Information.error`."""
        revealed = self.revealed(sigma)
        value, high, low = (
            self.tau * math.sqrt(max(0.0, 1 - end)) for end in (revealed.value, revealed.low, revealed.high)
        )
        return Interval(value, low, high)

    @property
    def scale(self) -> tuple[float, float]:
        """See `Information.scale`; the typical eigenvalue is the mean."""
        return self.traces.trace.value / self.traces.dimension, self.traces.largest


@final
class CorrelatedInformation(Information):
    """From all eigenvalues k [d] of K = L H L and their weights w [d], which add up to tr C."""

    status: Status = "exact"

    def __init__(self, eigenvalues: Eigenvalues, weights: Eigenvalues) -> None:
        self.eigenvalues, self.weights = eigenvalues, weights
        self.tau = math.sqrt(float(weights.mean()))

    def revealed(self, sigma: float) -> Interval:
        """See `Information.revealed`."""
        with np.errstate(over="ignore", divide="ignore"):
            shares = 1 / (1 + 1 / _signal_to_noise(self.eigenvalues, sigma, 1.0))
        value = min(1.0, float(self.weights @ shares) / float(self.weights.sum()))
        return Interval(value, value, value)

    def error(self, sigma: float) -> Interval:
        """See `Information.error`."""
        with np.errstate(over="ignore"):
            shares = 1 / (1 + _signal_to_noise(self.eigenvalues, sigma, 1.0))
        value = math.sqrt(float(self.weights @ shares) / len(shares))
        return Interval(value, value, value)

    @property
    def scale(self) -> tuple[float, float]:
        """See `Information.scale`; the typical eigenvalue is the mean, since most may be next to nothing."""
        typical, largest = float(self.eigenvalues.mean()), float(self.eigenvalues.max())
        return typical / self.tau**2, largest / self.tau**2


@final
class BracketedCorrelatedInformation(Information):
    """From random probes of K = L H L."""

    status: Status = "bracketed"

    def __init__(self, traces: WeightedTraces, dimension: int) -> None:
        self.traces, self.dimension = traces, dimension
        self.tau = math.sqrt(traces.weight_trace / dimension)
        self._last: tuple[float, Interval] | None = None

    def _remaining(self, sigma: float) -> Interval:
        if self._last is None or self._last[0] != sigma:
            self._last = sigma, self.traces.remaining(max(sigma * sigma, SMALLEST_SHIFT))
        return self._last[1]

    def revealed(self, sigma: float) -> Interval:
        """See `Information.revealed`."""
        left, total = self._remaining(sigma), self.traces.weight_trace
        value, high, low = (min(1.0, max(0.0, 1 - end / total)) for end in (left.value, left.low, left.high))
        return Interval(value, low, high)

    def error(self, sigma: float) -> Interval:
        """See `Information.error`."""
        left = self._remaining(sigma)
        return Interval(*(min(self.tau, math.sqrt(end / self.dimension)) for end in (left.value, left.low, left.high)))

    @property
    def scale(self) -> tuple[float, float]:
        """See `Information.scale`; the typical eigenvalue is a share of the largest that is common for images."""
        largest = self.traces.largest / self.tau**2
        return TYPICAL_SHARE * largest, largest
