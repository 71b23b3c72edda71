"""The posterior: what an attacker with prior N(mu, tau^2 I) knows of x after the release, linearised at x.

Posterior covariance (H / sigma^2 + I / tau^2)^-1, eps = sigma^2 / tau^2 (Gaussian noise; for another law
sigma is the Gaussian std of the same Fisher information, which makes this the van Trees bound). The MAP
error of this very sample has bias eps (H + eps)^-1 (x - mu) and variance sigma^2 tr (H + eps)^-2 H.
Derived in the project's notes from Balunovic et al., ICLR 2022; checked against dense float64.
"""

from __future__ import annotations

import math
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import brentq

from riskaudit.proxies.base import Proxy, ProxyScores, exact, needs_spectrum, register
from riskaudit.proxies.linearisation import Linearisation
from riskaudit.proxies.solves import norm_of_solve
from riskaudit.results import NoiseTarget

Eigenvalues = npt.NDArray[np.float64]

UNITS = "RMSE per input coordinate, data units"
# Noise below or above these, times the square root of l_1 and tau, is beyond float64's reach.
SEARCH_DECADES = 12


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


def noise_std_for_target(eigenvalues: Eigenvalues, tau: float, target: float) -> NoiseTarget:
    """Smallest Gaussian noise std for which posterior_rmse reaches ``target``, from all eigenvalues [d].

    posterior_rmse rises with sigma from tau sqrt(share of zero eigenvalues) to tau. A target at or above
    tau can't be reached ("not_applicable"); one that holds without noise needs a std of 0.
    """
    if target >= tau:
        return NoiseTarget(target_rmse=target, std=None, status="not_applicable")
    largest = float(eigenvalues.max())
    if largest == 0:
        return NoiseTarget(target_rmse=target, std=0.0)
    unit = tau * math.sqrt(largest)
    low, high = math.log(unit) - SEARCH_DECADES * math.log(10), math.log(unit) + SEARCH_DECADES * math.log(10)

    def excess(log_sigma: float) -> float:
        return float(posterior_rmse(eigenvalues, math.exp(log_sigma), tau)) - target

    if excess(low) >= 0:
        return NoiseTarget(target_rmse=target, std=0.0)
    return NoiseTarget(target_rmse=target, std=math.exp(brentq(excess, low, high, xtol=1e-12, rtol=1e-14)))


@register
@final
class PosteriorRmse(Proxy):
    """sqrt(trace of the posterior covariance / d)."""

    id = "posterior_rmse"
    title = "Posterior error"
    units = UNITS
    source = "derived from Balunovic et al., ICLR 2022, and Zhang et al., NeurIPS 2023"
    riskier = "lower"
    summary = "Error that remains for the best attacker with the stated prior, on average over that prior."

    def score(self, at: Linearisation) -> ProxyScores:
        """See `Proxy.score`."""
        if at.spectrum is None:
            return needs_spectrum(at)
        values = posterior_rmse(at.spectrum.values.cpu().numpy(), at.sigma, at.prior.std)
        return exact(torch.from_numpy(values))


@register
@final
class RevealedFraction(Proxy):
    """d_eff / d: 0 tells nothing beyond the prior, 1 tells all."""

    id = "revealed_fraction"
    title = "Revealed fraction"
    units = "share of the input's dimension, 0 to 1"
    source = "derived: effective dimension of the posterior over d"
    riskier = "higher"
    summary = "Share of the input that the release pins down beyond the prior: 0 is nothing, 1 is all."

    def score(self, at: Linearisation) -> ProxyScores:
        """See `Proxy.score`."""
        if at.spectrum is None:
            return needs_spectrum(at)
        return exact(torch.from_numpy(revealed_fraction(at.spectrum.values.cpu().numpy(), at.sigma, at.prior.std)))


@register
@final
class MapRmse(Proxy):
    """sqrt((bias^2 + variance) / d) of the MAP attacker at this sample."""

    id = "map_rmse"
    title = "MAP error at this sample"
    units = UNITS
    source = "derived from Balunovic et al., ICLR 2022"
    riskier = "lower"
    summary = "Error of the MAP attacker at this very sample (bias and variance), over all draws of the noise."

    def score(self, at: Linearisation) -> ProxyScores:
        """See `Proxy.score`."""
        if at.spectrum is None:
            return needs_spectrum(at)
        shifted = at.spectrum.values + at.eps
        rotated = torch.einsum("bnk,bn->bk", at.spectrum.vectors, at.displacement.double())
        bias = at.eps / shifted * rotated
        variance = at.sigma * at.sigma * at.spectrum.values / shifted.square()
        return exact((bias.square() + variance).mean(-1).sqrt())


@register
@final
class MapI2F(Proxy):
    """||(H + eps)^-1 (J^T delta - eps (x - mu))|| / sqrt(d) for the drawn noise delta."""

    id = "map_i2f"
    title = "MAP error (drawn noise)"
    units = UNITS
    source = "derived: I2F of Zhang et al., NeurIPS 2023, with a Gaussian prior"
    riskier = "lower"
    summary = "Error of the MAP attacker at this very sample for one draw of the noise."

    def score(self, at: Linearisation) -> ProxyScores:
        """See `Proxy.score`."""
        return norm_of_solve(at, at.pulled_noise - at.eps * at.displacement, at.eps)
