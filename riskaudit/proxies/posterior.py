"""The posterior: what an attacker with a Gaussian prior knows of x after the release, linearised at x.

Prior N(mu, tau^2 C), C = L L with tr C = d: the posterior covariance is (H / sigma^2 + C^-1 / tau^2)^-1 =
tau^2 L eps (K + eps)^-1 L with K = L H L and eps = sigma^2 / tau^2 (Gaussian noise; for another law sigma is the
Gaussian std of the same Fisher information, which makes this the van Trees bound). The MAP error of this very sample
has bias eps L (K + eps)^-1 L^-1 (x - mu) and variance sigma^2 tr L K (K + eps)^-2 L. With an isotropic prior L = 1 and
K = H. Derived from Balunovic et al., ICLR 2022: docs/theory.md, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from typing_extensions import override

from riskaudit.linalg import Interval, form_high
from riskaudit.proxies.base import Proxy, ProxyScores, exact, needs_traces, register
from riskaudit.proxies.solves import norm_of_solve
from riskaudit.results import Estimate
from riskaudit.sensitivity.estimates import interval
from riskaudit.sensitivity.information import Information
from riskaudit.sensitivity.linearisation import Linearisation

UNITS = "RMSE per input coordinate, data units"


def posterior_errors(linearisation: Linearisation, information: Sequence[Information] | None) -> ProxyScores:
    """The posterior error of each sample by what is told of it, whichever attacker it is told of; None: no traces."""
    if information is None:
        return needs_traces(linearisation)
    return ProxyScores(tuple(posterior_error(each, linearisation.sigma) for each in information))


def posterior_error(information: Information, sigma: float) -> Estimate:
    """The error that is left of one sample by what is told of it, at Gaussian noise of this std per released entry."""
    return interval(information.error(sigma), information.status, nothing=(0.0, information.tau))


def revealed_fractions(linearisation: Linearisation, information: Sequence[Information] | None) -> ProxyScores:
    """The revealed fraction likewise."""
    if information is None:
        return needs_traces(linearisation)
    sigma = linearisation.sigma
    return ProxyScores(tuple(interval(each.revealed(sigma), each.status, nothing=(0.0, 1.0)) for each in information))


@register
@final
class PosteriorRmse(Proxy):
    """sqrt(trace of the posterior covariance / d)."""

    id = "posterior_rmse"
    title = "Posterior error"
    short_title = "Posterior error"
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

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        return posterior_errors(linearisation, linearisation.information)


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

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        return revealed_fractions(linearisation, linearisation.information)


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

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        posterior = linearisation.posterior_spectrum
        if posterior is None:
            return needs_traces(linearisation) if linearisation.information is None else self._bracketed(linearisation)
        values, vectors, eps = posterior.spectrum.values, posterior.spectrum.vectors, linearisation.eps[:, None]
        white = posterior.prior.inverse_root(linearisation.displacement.double())
        shrunk = eps / (values + eps) * torch.einsum("bnk,bn->bk", vectors, white)
        bias = linearisation.blocks(posterior.prior.root(torch.einsum("bnk,bk->bn", vectors, shrunk)))
        noise = linearisation.sigma * linearisation.sigma * values / (values + eps).square()
        variance = torch.einsum("bnk,bk->bn", posterior.weights, noise).flatten()
        return exact(((bias.square().sum(-1) + variance) / linearisation.dimensions).sqrt())

    @staticmethod
    def _bracketed(linearisation: Linearisation) -> ProxyScores:
        """Bias from the norm of a solution, variance from probes."""
        shifts, noise = linearisation.eps, linearisation.sigma * linearisation.sigma
        rows = []
        shifts_of_samples = shifts.repeat_interleave(linearisation.upload_size).tolist()
        variances, biases = linearisation.posterior_variances, linearisation.solved_displacement.intervals
        dimensions = linearisation.dimensions.tolist()
        for bias, variance, shift, dimension in zip(biases, variances, shifts_of_samples, dimensions, strict=True):
            ends = [
                # Not squared by **, which raises where a product is infinite.
                math.sqrt((shift * length * (shift * length) + noise * max(0.0, spread)) / dimension)
                for length, spread in zip(
                    (bias.value, bias.low, bias.high), (variance.value, variance.low, variance.high), strict=True
                )
            ]
            rows.append(interval(Interval(*ends), "bracketed", nothing=(0.0, math.inf)))
        return ProxyScores(tuple(rows))


@register
@final
class MapI2F(Proxy):
    """||L (K + eps)^-1 (L J^T delta - eps L^-1 (x - mu))|| / sqrt(d) for the drawn noise delta."""

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

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        brackets, eps = linearisation.posterior_brackets, linearisation.eps
        posterior = linearisation.posterior_spectrum if linearisation.plan.inverse == "dense" else None
        # In float64 where all eigenvalues are known, else in the dtype of the operator.
        prior = brackets.prior if posterior is None else posterior.prior
        pulled, displacement = (
            each.to(prior.mean) for each in (linearisation.pulled_noise, linearisation.displacement)
        )
        rhs = prior.root(pulled) - eps[:, None].to(pulled) * prior.inverse_root(displacement)
        return norm_of_solve(linearisation, brackets, prior.root, rhs, eps, self._most(linearisation))

    @staticmethod
    def _most(linearisation: Linearisation) -> list[float] | None:
        """Upper ends of the solution's length: of its noise's by chance, of its bias's where that is asked for too."""
        noise = linearisation.release.noise
        known = noise is not None and noise.law == "gaussian" and linearisation.plan.inverse == "quadrature"
        if not (known and linearisation.prior.isotropic and linearisation.upload_size == 1):
            return None
        if "map_rmse" not in linearisation.plan.proxies:
            return None
        most, sigma, failure = [], linearisation.sigma, linearisation.ends.failure
        rows = zip(
            linearisation.posterior_variances,
            linearisation.solved_displacement.intervals,
            linearisation.eps.tolist(),
            strict=True,
        )
        for variance, bias, eps in rows:
            # A draw of the noise is a probe of J (H + eps)^-2 J^T, whose trace is the variance's, its norm 1 / (4 eps),
            # and its product with the bias b is normal, of a standard deviation of |b| sigma / (2 sqrt(eps)) at most.
            form = sigma * sigma * form_high(variance.high, 1 / (4 * eps), failure / 2)
            length = eps * bias.high
            product = length * sigma / math.sqrt(eps) * math.sqrt(2 * math.log(2 / failure))
            most.append(math.sqrt(form + product + length * length))
        return most
