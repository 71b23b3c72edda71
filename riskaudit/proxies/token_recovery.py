"""Token recovery: how often an attacker who knows a text's other tokens tells the right one at a position.

The mean over a text's positions, those left out that hold the tokenizer's own tokens. Not a derivative: see
`riskaudit.sensitivity.tokens`, which has the attacker, its equations and what isn't certified.
"""

from __future__ import annotations

from typing import final

from typing_extensions import override

from riskaudit.linalg import Interval
from riskaudit.proxies.base import Proxy, ProxyScores, not_applicable, register
from riskaudit.results import Estimate
from riskaudit.sensitivity.linearisation import Linearisation


def scores_of(linearisation: Linearisation) -> ProxyScores:
    """Of the attacker who knows everything else, whether texts leave alone or with others."""
    differences = linearisation.tokens
    if differences is None:
        return not_applicable(linearisation, "inputs are no texts, or an upload has the same text twice")
    noise = linearisation.release.noise
    if noise is None or noise.law != "gaussian":
        return not_applicable(linearisation, "needs Gaussian noise")
    rows = []
    for index, confusions in enumerate(differences.confusions):
        private = differences.private_positions(index)
        rows.append(_mean([confusions[place].recovery(linearisation.sigma) for place in private]))
    return ProxyScores(tuple(rows))


@register
@final
class TokenRecovery(Proxy):
    """Mean over positions of P(max_v 2 n . D_v / ||D_v||^2 < 1)."""

    id = "token_recovery"
    title = "Token recovery"
    short_title = "Tokens recovered"
    units = "share of a text's tokens, 0 to 1"
    source = "derived: the likelihood-ratio attacker among all tokens of the vocabulary"
    riskier = "higher"
    summary = "Share of a text's tokens that an attacker tells right who knows all its other tokens."
    formula = (
        "mean over positions of P(2 n·D < ‖D‖² for every other token), D the change of what leaves with another token "
        "in its place; the lower end is 1 − Σ Q(‖D‖ / 2σ)"
    )
    order = 15
    text_only = True
    few_products = True

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        if linearisation.upload_size > 1:
            return not_applicable(
                linearisation, "of texts that leave together an attacker is assessed who knows the others"
            )
        return scores_of(linearisation)


@register
@final
class InformedTokenRecovery(Proxy):
    """The same where several texts leave together, of an attacker who knows all others."""

    id = "informed_token_recovery"
    title = "Informed token recovery"
    short_title = "Tokens recovered, informed"
    units = TokenRecovery.units
    source = TokenRecovery.source
    riskier = "higher"
    summary = (
        "Share of a text's tokens that an attacker tells right who knows all its other tokens, and all other texts."
    )
    formula = TokenRecovery.formula
    order = 16
    text_only = True
    joint_only = True
    few_products = True

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        if linearisation.upload_size == 1:
            return not_applicable(linearisation, "every text leaves alone")
        return scores_of(linearisation)


def _mean(intervals: list[Interval]) -> Estimate:
    if not intervals:
        return Estimate(value=None, status="not_applicable")
    count = len(intervals)
    value, low, high = (sum(getattr(each, name) for each in intervals) / count for name in ("value", "low", "high"))
    return Estimate(value=value, low=low, high=high, status="bracketed")
