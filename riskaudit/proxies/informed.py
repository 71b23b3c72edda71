"""The posterior of an attacker who knows all other samples of the upload: the most that it can give away.

An attacker who knows none of them faces the whole H = J^T J of the upload (`posterior`), one who knows all others the
block H_jj = J_j^T J_j of sample j alone. Knowing more never makes the posterior wider, so these numbers are the risky
end; the gap is what the crowd protects (docs/theory.md, section 7). A sample that leaves alone has but one attacker.
"""

from __future__ import annotations

from typing import final

from typing_extensions import override

from riskaudit.proxies.base import Proxy, ProxyScores, register
from riskaudit.proxies.posterior import UNITS, posterior_errors, revealed_fractions
from riskaudit.sensitivity.linearisation import Linearisation


@register
@final
class InformedPosteriorRmse(Proxy):
    """sqrt(trace of the posterior covariance of one sample given all others / d)."""

    id = "informed_posterior_rmse"
    title = "Informed posterior error"
    short_title = "Informed posterior error"
    units = UNITS
    source = "derived from Balunovic et al., ICLR 2022: one block of the upload's Fisher information"
    riskier = "lower"
    summary = "Error that remains for the best attacker who knows all other samples of the upload."
    formula = "√(mean of σ² / (λ + ε)), λ the eigenvalues of AᵀA, A the sample's columns of J, and ε = σ² / τ²"
    order = 22
    joint_only = True

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        return posterior_errors(linearisation, linearisation.informed_information)


@register
@final
class InformedRevealedFraction(Proxy):
    """1 - trace of that covariance over trace of the prior's."""

    id = "informed_revealed_fraction"
    title = "Informed revealed fraction"
    short_title = "Informed revealed"
    units = "share of the input's dimension, 0 to 1"
    source = "derived: effective dimension of one block of the upload's Fisher information over d"
    riskier = "higher"
    summary = "Share of the input that the upload pins down for an attacker who knows all its other samples."
    formula = (
        "mean over directions of λ / (λ + ε), λ the eigenvalues of AᵀA, A the sample's columns of J, and ε = σ² / τ²"
    )
    order = 12
    joint_only = True

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        return revealed_fractions(linearisation, linearisation.informed_information)
