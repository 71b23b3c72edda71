"""How probably an attacker succeeds: P(RMSE <= tolerance), and in what range this one attack's RMSE will lie.

The Bayes-optimal attacker of Balunovic et al. (ICLR 2022, section 4, whose risk is P(||x - f(g)|| > delta)) with
a Gaussian prior, linearised at the sample: the error is N(0, P) with P the posterior covariance of eigenvalues s_i,
so P(RMSE <= tolerance) = P(sum_i s_i X_i^2 <= d tolerance^2) (`chi_squares`). It is a probability over the prior
and the noise, not over attacks; where the prior isn't this sample's, it is only as good as that. An undefended
release is taken at its reference noise.

Without all eigenvalues, bounds from the ends of tr P and from ||P||, which hold with their confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from riskaudit.linalg import Interval
from riskaudit.results import Estimate, ProxyInfo, SuccessProbability
from riskaudit.sensitivity.estimates import interval
from riskaudit.sensitivity.linearisation import Linearisation
from riskaudit.statistics.chi_squares import (
    least_below,
    least_quantile,
    most_below,
    most_quantile,
    probability_below,
    quantile,
)

PREDICTED_RMSE = ProxyInfo(
    id="predicted_rmse",
    title="Predicted RMSE (90\u00a0% interval)",
    short_title="Predicted RMSE",
    units="RMSE per input coordinate, data units",
    source="derived from Balunovic et al., ICLR 2022, section 4",
    riskier="lower",
    summary="Error of the best attacker with the stated prior, with the interval in which a single attack's lies.",
    formula="√(mean of σ² / (λ + ε)); the interval holds √(Σ s X² / d), s the posterior variances, X standard normal",
    order=30,
    predicts_rmse=True,
)
# The predictive interval leaves out as much on either side.
TAIL = 0.05


def success_of(
    linearisation: Linearisation, index: int, tolerances: Sequence[float]
) -> tuple[list[SuccessProbability], Estimate | None]:
    """One sample's probability of success per tolerance (RMSE, data units), and its 90 % predictive interval.

    The prediction's value is posterior_rmse, the root mean square over the prior and the noise; it lies inside
    the interval.
    """
    if linearisation.information is None:
        return [
            SuccessProbability(tolerance=tolerance, probability=None, status="not_applicable")
            for tolerance in tolerances
        ], None
    error = linearisation.information[index].error(linearisation.sigma)
    eigenvalues = linearisation.covariance_eigenvalues(index)
    if eigenvalues is not None:
        return _exact(eigenvalues, error.value, tolerances, float(linearisation.dimensions[index]))
    return _bounded(error, linearisation.covariance_norm(index), float(linearisation.dimensions[index]), tolerances)


def _exact(
    eigenvalues: np.ndarray, value: float, tolerances: Sequence[float], dimension: float
) -> tuple[list[SuccessProbability], Estimate]:
    if not (np.isfinite(eigenvalues).all() and math.isfinite(value)):
        failed = [SuccessProbability(tolerance=each, probability=None, status="failed") for each in tolerances]
        return failed, Estimate(value=None, status="failed")
    rows = [
        SuccessProbability(
            tolerance=tolerance,
            probability=probability_below(eigenvalues, dimension * tolerance * tolerance),
            status="exact",
        )
        for tolerance in tolerances
    ]
    low, high = (math.sqrt(quantile(eigenvalues, share) / dimension) for share in (TAIL, 1 - TAIL))
    return rows, Estimate(value=value, low=low, high=high, status="exact")


def _bounded(
    error: Interval, norm: float, dimension: float, tolerances: Sequence[float]
) -> tuple[list[SuccessProbability], Estimate]:
    least, most = (dimension * end * end for end in (error.low, error.high))
    rows = [
        SuccessProbability(
            tolerance=tolerance,
            probability=None,
            low=least_below(most, norm, dimension * tolerance * tolerance),
            high=most_below(least, norm, dimension * tolerance * tolerance),
            status="bracketed",
        )
        for tolerance in tolerances
    ]
    low = math.sqrt(least_quantile(least, norm, TAIL) / dimension)
    high = math.sqrt(most_quantile(most, norm, 1 - TAIL) / dimension)
    # An interval that says nothing has no value inside it worth the name.
    says_something = interval(error, "bracketed", nothing=(0.0, math.inf)).value is not None
    return rows, Estimate(
        value=error.value if says_something else None,
        low=low,
        high=high if math.isfinite(high) else None,
        status="bracketed" if says_something else "not_converged",
    )
