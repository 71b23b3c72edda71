"""Noise of a given power that leaves an attacker the largest posterior error, to first order.

Noise with covariance S and a prior N(mu, tau^2 I) leave the posterior covariance (J^T S^-1 J + I / tau^2)^-1. Noise
orthogonal to the range of J changes nothing in it and is wasted, so S = sum_i q_i u_i u_i^T with the left singular
vectors u_i of J. The posterior variance along v_i is then

    p_i = 1 / (l_i / q_i + 1 / tau^2) = tau^2 q_i / (q_i + tau^2 l_i),   dp_i / dq_i = tau^4 l_i / (q_i + tau^2 l_i)^2,

concave in q_i. Maximising sum p_i under sum q_i = N, q_i >= 0: where q_i > 0 all slopes equal one multiplier,
so q_i + tau^2 l_i = tau^2 w sqrt(l_i) with one water level w, and

    q_i = tau^2 sqrt(l_i) (w - sqrt(l_i))_+,   w = (N / tau^2 + sum l_i) / sum sqrt(l_i), sums over sqrt(l_i) < w.

Directions beyond w are too dear to hide and get nothing; so do directions that the release hardly shows. That no S
with other eigenvectors does better: the trace of the parallel sum of J^-1 S J^-T and tau^2 I is concave in S, and
averaging over sign changes of the u_i makes S diagonal without changing its trace.

With one variance q_g per layer, H = sum_g H_g: maximise tr (sum_g H_g / q_g + I / tau^2)^-1 under sum_g P_g q_g = N.
That too is a parallel sum, hence concave in q: a local optimum is the global one.

Not valid beyond first order: an attacker who knows S uses the released entries without noise as exact equations
and gets more out of them than J says; and S is a function of the private input, so whoever learns S learns of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

Vector = NDArray[np.float64]

# Steps of the optimiser of the per-layer variances.
MAX_STEPS = 60


def posterior_variances(eigenvalues: Vector, variances: Vector, prior_variance: float) -> Vector:
    """p_i for l_i and q_i; all of the prior's where l_i = 0."""
    shown = prior_variance * eigenvalues
    total = variances + shown
    with np.errstate(invalid="ignore", divide="ignore"):
        remaining: Vector = np.where(shown > 0, prior_variance * variances / total, prior_variance)
    return remaining


def shaped_rmse(eigenvalues: Vector, variances: Vector, prior_variance: float) -> float:
    """sqrt(sum p_i / d)."""
    return float(np.sqrt(posterior_variances(eigenvalues, variances, prior_variance).mean()))


def water_filled(eigenvalues: Vector, prior_variance: float, power: float) -> tuple[Vector, float]:
    """The best variances along the left singular vectors for l_i, tau^2 and the power N, and the water level w.

    Returns:
        q_i in the same order; zeros and a level of 0 where all l_i are 0, since no noise is needed then.
    """
    roots = np.sqrt(eigenvalues)
    ascending = np.sort(roots[roots > 0])
    if not len(ascending):
        return np.zeros_like(eigenvalues), 0.0
    levels = (power / prior_variance + np.cumsum(ascending**2)) / np.cumsum(ascending)
    # The level falls with every direction that still lies below it, and the first one always does.
    level = float(levels[np.nonzero(levels > ascending)[0][-1]])
    return prior_variance * roots * np.clip(level - roots, 0.0, None), level


def per_layer(
    grams: Sequence[Tensor], sizes: Sequence[int], prior_variance: float, power: float
) -> tuple[Vector, float]:
    """The best variance per entry of each layer, for H_g [d, d], float64, and P_g, the posterior error it leaves."""
    counts = np.asarray(sizes, dtype=np.float64)
    dimension = len(grams[0])

    def variances(logits: Vector) -> tuple[Vector, Vector]:
        shares = np.exp(logits - logits.max())
        shares = shares / shares.sum()
        return shares, power * shares / counts

    def objective(logits: Vector) -> tuple[float, Vector]:
        shares, q = variances(logits)
        inverse = layered_covariance(grams, q, prior_variance)
        squared = inverse @ inverse
        # d tr M^-1 / d log q_g = tr(M^-2 H_g) / q_g.
        slopes = np.array([float((squared * gram).sum()) for gram in grams]) / q
        scale = dimension * prior_variance
        return -float(inverse.diagonal().sum()) / scale, -(slopes - shares * slopes.sum()) / scale

    equal = np.log(counts)
    optimum = minimize(objective, equal, jac=True, method="L-BFGS-B", options={"maxiter": MAX_STEPS, "ftol": 1e-10})
    _, q = variances(np.asarray(optimum.x, dtype=np.float64))
    return q, float(np.sqrt(-optimum.fun * prior_variance))


def layered_covariance(grams: Sequence[Tensor], variances: Vector, prior_variance: float) -> Tensor:
    """(sum_g H_g / q_g + I / tau^2)^-1, [d, d]."""
    precision = torch.eye(len(grams[0]), dtype=torch.float64, device=grams[0].device) / prior_variance
    for gram, variance in zip(grams, variances.tolist(), strict=True):
        precision += gram / max(variance, 1e-300)
    inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(precision))
    return inverse
