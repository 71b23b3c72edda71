"""||r(x)||_2: the baseline that every other proxy has to beat."""

from __future__ import annotations

from typing import final

from typing_extensions import override

from riskaudit.proxies.base import Proxy, ProxyScores, exact, register
from riskaudit.sensitivity.linearisation import Linearisation


@register
@final
class GradientNorm(Proxy):
    """2-norm of the released vector before noise."""

    id = "gradient_norm"
    title = "Gradient norm"
    short_title = "Gradient norm"
    units = "2-norm of the released vector"
    source = "baseline"
    riskier = "higher"
    summary = "Length of the released vector before noise; the baseline that other proxies have to beat."
    formula = "‖r‖, r the released vector before noise"
    order = 130
    few_products = True

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        return exact(linearisation.gradient_norm)
