"""I2F, the inversion influence function: Zhang et al., NeurIPS 2023, Eq. 3-6, per input coordinate.

Not valid beyond the linearisation: large noise, or a release that is not differentiable at the sample.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import final

import torch
from typing_extensions import override

from riskaudit.proxies.base import Proxy, ProxyScores, graded, needs_traces, register
from riskaudit.proxies.solves import norm_of_solve
from riskaudit.results import Estimate, Status
from riskaudit.sensitivity.estimates import estimate, interval
from riskaudit.sensitivity.linearisation import Linearisation

SOURCE = "Zhang et al., NeurIPS 2023"
UNITS = "RMSE per input coordinate, data units"


@register
@final
class I2F(Proxy):
    """||H^-1 J^T delta|| / sqrt(d) for the drawn noise delta."""

    id = "i2f"
    title = "Inversion influence (drawn noise)"
    short_title = "I2F"
    units = UNITS
    source = f"{SOURCE}, Eq. 3-4"
    riskier = "lower"
    summary = "First-order reconstruction error of an attacker without a prior, for one draw of the noise."
    formula = "‖(JᵀJ)⁻¹ Jᵀ noise‖ / √d"
    order = 60
    predicts_rmse = True

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        no_shift = torch.zeros_like(linearisation.eps)
        brackets, rhs = linearisation.brackets, linearisation.pulled_noise
        scores = norm_of_solve(linearisation, brackets, brackets.prior.root, rhs, no_shift)
        bracketed = linearisation.plan.inverse == "quadrature"
        if not bracketed or all(row.value is not None for row in scores.estimates):
            return scores
        reason = (
            "without a prior and a lower end of H's smallest eigenvalue nothing bounds this error from above; "
            "the lower end holds, `inverse=cg` tries to solve, `solver=dense` is exact"
        )
        return replace(scores, reason=reason)


@register
@final
class I2FLowerBound(Proxy):
    """||J^T delta|| / (l_1 sqrt(d)), l_1 at its certified upper end."""

    id = "i2f_lower_bound"
    title = "Inversion influence, lower bound"
    short_title = "I2F lower bound"
    units = UNITS
    source = f"{SOURCE}, Eq. 5"
    riskier = "lower"
    summary = "Certified lower bound of the inversion influence from the largest eigenvalue alone; usually very loose."
    formula = "‖Jᵀ noise‖ / (λ √d), λ the largest eigenvalue of JᵀJ"
    order = 70
    few_products = True

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        # Of the whole upload: of a block of the solution l_1 bounds nothing.
        pulled_noise = linearisation.pulled_noise
        scale = pulled_noise.norm(dim=-1).double() / math.sqrt(pulled_noise.shape[1])
        largest = linearisation.largest
        assert largest.high is not None
        rows = []
        for pulled, ritz, upper, status in zip(
            scale.tolist(), largest.value.tolist(), largest.high.tolist(), largest.status, strict=True
        ):
            if ritz == 0 and math.isfinite(upper):
                rows.append(Estimate(value=None, status="singular"))
            elif not math.isfinite(upper):
                # No upper end of l_1 is certified yet, so neither is a lower bound.
                rows.append(estimate(None, "not_converged", 0.0, pulled / ritz if ritz else None))
            else:
                bound = pulled / upper
                rows.append(estimate(bound, "exact" if status == "exact" else "bracketed", bound, pulled / ritz))
        return ProxyScores(tuple(rows))


@register
@final
class ExpectedRmse(Proxy):
    """sigma sqrt(sum_i 1 / l_i / d): I2F averaged over Gaussian noise; the Cramer-Rao bound."""

    id = "expected_rmse"
    title = "Expected error without a prior"
    short_title = "Expected RMSE"
    units = UNITS
    source = f"{SOURCE}, Eq. 6; Cramér-Rao bound of an unbiased attacker"
    riskier = "lower"
    summary = "Root mean square error of the best unbiased attacker, over all draws of the noise."
    formula = "σ √(mean of 1 / λ), λ the eigenvalues of JᵀJ"
    order = 80
    predicts_rmse = True

    @override
    def score(self, linearisation: Linearisation) -> ProxyScores:
        if linearisation.spectrum is None:
            return needs_traces(linearisation) if linearisation.information is None else self._bracketed(linearisation)
        values, size = linearisation.spectrum.values, linearisation.upload_size
        singular = linearisation.spectrum.rank < values.shape[1]
        inverses = 1 / torch.where(singular[:, None], torch.ones_like(values), values)
        squares = linearisation.spectrum.vectors.square() if size > 1 else None
        if squares is None:
            means = inverses.mean(-1)
        else:
            sums = linearisation.blocks(torch.einsum("bnk,bk->bn", squares, inverses)).sum(-1)
            means = sums / linearisation.dimensions
        value = linearisation.sigma * means.sqrt()
        statuses: list[Status] = ["singular" if lost else "exact" for lost in singular.tolist() for _ in range(size)]
        return graded(value, statuses, value, value)

    @staticmethod
    def _bracketed(linearisation: Linearisation) -> ProxyScores:
        """From probes; without a lower end of l_d nothing bounds it from above."""
        rows, sigma, dimensions = [], linearisation.sigma, linearisation.dimensions.tolist()
        least_of_samples = [least for least in linearisation.ends.least for _ in range(linearisation.upload_size)]
        for traces, least, dimension in zip(linearisation.brackets.traces, least_of_samples, dimensions, strict=True):
            error = traces.inverse_trace(least).map(lambda end, count=dimension: sigma * math.sqrt(end / count))  # type: ignore[misc]
            rows.append(interval(error, "bracketed", nothing=(0.0, math.inf)))
        reason = None
        if any(row.value is None for row in rows):
            reason = (
                "without a lower end of H's smallest eigenvalue nothing bounds this error from above; "
                "the lower end holds, `solver=dense` is exact"
            )
        return ProxyScores(tuple(rows), reason)
