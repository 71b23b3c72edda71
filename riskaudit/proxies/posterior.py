"""The posterior: what an attacker with a Gaussian prior knows of x after the release, linearised at x.

Prior N(mu, tau^2 I): posterior covariance (H / sigma^2 + I / tau^2)^-1, eps = sigma^2 / tau^2 (Gaussian noise;
for another law sigma is the Gaussian std of the same Fisher information, which makes this the van Trees bound).
The MAP error of this very sample has bias eps (H + eps)^-1 (x - mu) and variance sigma^2 tr (H + eps)^-2 H.
Prior N(mu, C), C = L L^T: posterior covariance L (K / sigma^2 + I)^-1 L with K = L H L; bias
sigma^2 L (K + sigma^2)^-1 L^-1 (x - mu) and variance sigma^2 tr L K (K + sigma^2)^-2 L.
Derived from Balunovic et al., ICLR 2022: docs/theory.md, section 2.
"""

from __future__ import annotations

import math
from typing import final

import torch

from riskaudit.linalg import Interval
from riskaudit.proxies.base import Proxy, ProxyScores, exact, needs_traces, register
from riskaudit.proxies.solves import norm_of_solve, norm_of_whitened_solve
from riskaudit.sensitivity.estimates import interval
from riskaudit.sensitivity.linearisation import Linearisation
from riskaudit.sensitivity.posterior_spectrum import PosteriorSpectrum

UNITS = "RMSE per input coordinate, data units"


@register
@final
class PosteriorRmse(Proxy):
    """sqrt(trace of the posterior covariance / d)."""

    id = "posterior_rmse"
    title = "Posterior error"
    short_title = "Posterior RMSE"
    units = UNITS
    source = "derived from Balunovic et al., ICLR 2022, and Zhang et al., NeurIPS 2023"
    riskier = "lower"
    summary = "Error that remains for the best attacker with the stated prior, on average over that prior."
    formula = (
        "√(mean of σ² / (λ + ε)), λ the eigenvalues of JᵀJ and ε = σ² / τ²; with a prior covariance L "
        "Lᵀ, √(tr(L (Lᵀ JᵀJ L / σ² + 1)⁻¹ Lᵀ) / d)"
    )
    order = 20
    predicts_rmse = True

    def score(self, at: Linearisation) -> ProxyScores:
        """See `Proxy.score`."""
        if at.information is None:
            return needs_traces(at)
        return ProxyScores(
            tuple(interval(each.error(at.sigma), each.status, nothing=(0.0, each.tau)) for each in at.information)
        )


@register
@final
class RevealedFraction(Proxy):
    """1 - trace of the posterior over trace of the prior covariance: 0 tells nothing beyond the prior, 1 tells all."""

    id = "revealed_fraction"
    title = "Revealed fraction"
    short_title = "Revealed"
    units = "share of the input's dimension, 0 to 1"
    source = "derived: effective dimension of the posterior over d"
    riskier = "higher"
    summary = "Share of the input that the release pins down beyond the prior: 0 is nothing, 1 is all."
    formula = (
        "mean over directions of λ / (λ + ε), λ the eigenvalues of JᵀJ and ε = σ² / τ², which is 1 − "
        "tr(posterior covariance) / tr(prior covariance)"
    )
    order = 10

    def score(self, at: Linearisation) -> ProxyScores:
        """See `Proxy.score`."""
        if at.information is None:
            return needs_traces(at)
        return ProxyScores(
            tuple(interval(each.revealed(at.sigma), each.status, nothing=(0.0, 1.0)) for each in at.information)
        )


@register
@final
class MapRmse(Proxy):
    """sqrt((bias^2 + variance) / d) of the MAP attacker at this sample."""

    id = "map_rmse"
    title = "MAP error at this sample"
    short_title = "MAP RMSE"
    units = UNITS
    source = "derived from Balunovic et al., ICLR 2022"
    riskier = "lower"
    summary = "Error of the MAP attacker at this very sample (bias and variance), over all draws of the noise."
    formula = "√((‖ε (JᵀJ + ε)⁻¹ (x − μ)‖² + σ² tr((JᵀJ + ε)⁻² JᵀJ)) / d), with ε = σ² / τ²"
    order = 40
    predicts_rmse = True

    def score(self, at: Linearisation) -> ProxyScores:
        """See `Proxy.score`."""
        if at.spectrum is None:
            return needs_traces(at) if at.information is None else self._bracketed(at)
        if at.posterior_spectrum is not None:
            return self._exact_correlated(at, at.posterior_spectrum)
        shifted = at.spectrum.values + at.eps
        rotated = torch.einsum("bnk,bn->bk", at.spectrum.vectors, at.displacement.double())
        bias = at.eps / shifted * rotated
        variance = at.sigma * at.sigma * at.spectrum.values / shifted.square()
        return exact((bias.square() + variance).mean(-1).sqrt())

    @staticmethod
    def _exact_correlated(at: Linearisation, found: PosteriorSpectrum) -> ProxyScores:
        noise = at.sigma * at.sigma
        white = found.prior.inverse_root(at.displacement.double())
        bias = noise * found.solve(white, noise)
        variance = noise * (found.weights * found.values / (found.values + noise).square()).sum(-1)
        return exact(((bias.square().sum(-1) + variance) / at.dimension).sqrt())

    @staticmethod
    def _bracketed(at: Linearisation) -> ProxyScores:
        """Bias from the norm of a solution, variance from probes."""
        if at.tau is None:
            shift, noise = at.posterior_brackets.eps, at.posterior_brackets.eps
            white = at.prior.inverse_root(at.displacement)
            biases = at.posterior_brackets.solution_norms(white, shift).intervals
            variances = [traces.variance(shift) for traces in at.posterior_brackets.traces]
        else:
            shift, noise = at.eps, at.sigma * at.sigma
            biases = at.brackets.inverse_norms(at.displacement, shift).intervals
            variances = [traces.probes.variance_trace(at.brackets.eps) for traces in at.brackets.traces]
        rows = []
        for bias, variance in zip(biases, variances, strict=True):
            ends = [
                math.sqrt(((shift * one) ** 2 + noise * max(0.0, other)) / at.dimension)
                for one, other in zip(
                    (bias.value, bias.low, bias.high), (variance.value, variance.low, variance.high), strict=True
                )
            ]
            rows.append(interval(Interval(*ends), "bracketed", nothing=(0.0, math.inf)))
        return ProxyScores(tuple(rows))


@register
@final
class MapI2F(Proxy):
    """||(H + eps)^-1 (J^T delta - eps (x - mu))|| / sqrt(d) for the drawn noise delta.

    With a correlated prior ||L (K + sigma^2)^-1 (L J^T delta - sigma^2 L^-1 (x - mu))|| / sqrt(d).
    """

    id = "map_i2f"
    title = "MAP error (drawn noise)"
    short_title = "MAP I2F"
    units = UNITS
    source = "derived: I2F of Zhang et al., NeurIPS 2023, with a Gaussian prior"
    riskier = "lower"
    summary = "Error of the MAP attacker at this very sample for one draw of the noise."
    formula = "‖(JᵀJ + ε)⁻¹ (Jᵀ noise − ε (x − μ))‖ / √d, with ε = σ² / τ²"
    order = 50
    predicts_rmse = True

    def score(self, at: Linearisation) -> ProxyScores:
        """See `Proxy.score`."""
        if at.tau is None:
            return norm_of_whitened_solve(at)
        return norm_of_solve(at, at.pulled_noise - at.eps * at.displacement, at.eps)
