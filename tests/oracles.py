"""What the numbers should be: float64, dense, slow, and written from the formulas without the package.

The release is differentiated by plain autograd (two passes of `torch.autograd.grad`, no transforms), all
linear algebra is numpy's on the Jacobian J [P, d] itself; H = J^T J is only formed for the posterior.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]
Change = Callable[[Tensor], Tensor]


def released_mean(model: nn.Module, loss: Loss, x: Tensor, target: Tensor, changes: tuple[Change, ...] = ()) -> Tensor:
    """r(x) [P] of one sample with the graph to ``x``, for changes such as `clipped(1.0)` after the gradient."""
    value = loss(model(x.unsqueeze(0)), target.unsqueeze(0))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(value, trainable, create_graph=True)
    released = torch.cat([gradient.reshape(-1) for gradient in gradients])
    for change in changes:
        released = change(released)
    return released


def clipped(bound: float) -> Change:
    def change(released: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(released)
        return released * (bound / norm) if float(norm.detach()) > bound else released

    return change


def pruned(ratio: float) -> Change:
    def change(released: Tensor) -> Tensor:
        removed = round(ratio * released.numel())
        order = np.argsort(released.detach().abs().numpy(), kind="stable")
        kept = np.ones(released.numel())
        kept[order[:removed]] = 0
        return released * torch.from_numpy(kept)

    return change


def masked(kept: Tensor) -> Change:
    return lambda released: released * kept


def jacobian(model: nn.Module, loss: Loss, x: Tensor, target: Tensor, changes: tuple[Change, ...] = ()) -> Array:
    """dr/dx [P, d]: the pullback u -> J^T u is linear in u, so its own derivatives are the columns of J."""
    x = x.clone().requires_grad_(True)
    released = released_mean(model, loss, x, target, changes)
    cotangent = torch.zeros_like(released, requires_grad=True)
    (pulled,) = torch.autograd.grad(released, x, cotangent, create_graph=True)
    columns = [torch.autograd.grad(entry, cotangent, retain_graph=True)[0] for entry in pulled.reshape(-1)]
    return torch.stack(columns, dim=1).detach().numpy()


def jacobian_by_rows(
    model: nn.Module, loss: Loss, x: Tensor, target: Tensor, changes: tuple[Change, ...] = ()
) -> Array:
    """The same matrix entry by entry of r, for small P: one more way that shares nothing with the columns."""
    rows = torch.autograd.functional.jacobian(lambda value: released_mean(model, loss, value, target, changes), x)
    return rows.reshape(rows.shape[0], -1).detach().numpy()


def cosine_hessian(J: Array, r: Array) -> Array:
    """(H - v v^T) / ||r||^2 with v = J^T rhat."""
    v = J.T @ (r / np.linalg.norm(r))
    return (J.T @ J - np.outer(v, v)) / (r @ r)


def proxies(J: Array, r: Array, delta: Array, displacement: Array, sigma: float, tau: float) -> dict[str, float]:
    """Every proxy of docs/theory.md, section 2, for a J of full column rank.

    Args:
        J: [P, d].
        r: release mean, [P].
        delta: the drawn noise as it leaves the client, [P].
        displacement: x - mu, [d].
        sigma: std of the (Fisher-equivalent) normal noise.
        tau: std of the prior.
    """
    d = J.shape[1]
    singular_values = np.linalg.svd(J, compute_uv=False)
    l = singular_values**2  # noqa: E741
    pulled = J.T @ delta
    P = np.linalg.inv(J.T @ J / sigma**2 + np.eye(d) / tau**2)
    error = P @ (pulled / sigma**2 - displacement / tau**2)
    bias = P @ displacement / tau**2
    variance = np.trace(P @ (J.T @ J / sigma**2) @ P)
    cosine = np.linalg.eigvalsh(cosine_hessian(J, r)) if r.any() else np.full(d, math.nan)
    return {
        "gradient_norm": float(np.linalg.norm(r)),
        "i2f": float(np.linalg.norm(np.linalg.lstsq(J, delta, rcond=None)[0]) / math.sqrt(d)),
        "i2f_lower_bound": float(np.linalg.norm(pulled) / (l.max() * math.sqrt(d))),
        "expected_rmse": float(sigma * np.sqrt(np.sum(1 / l) / d)),
        "posterior_rmse": float(np.sqrt(np.trace(P) / d)),
        "revealed_fraction": float(np.sum(l / (l + (sigma / tau) ** 2)) / d),
        "map_rmse": float(np.sqrt((bias @ bias + variance) / d)),
        "map_i2f": float(np.linalg.norm(error) / math.sqrt(d)),
        "lavp_l2_max": float(2 * l.max()),
        "lavp_l2_min": float(2 * l.min()),
        "lavp_cosine_max": float(cosine.max()),
        "lavp_cosine_min": float(cosine.min()),
    }


def correlated_posterior(J: Array, delta: Array, displacement: Array, sigma: float, C: Array) -> dict[str, float]:
    """The proxies with a prior in them, for the prior N(mu, C) and displacement x - mu [d]: by plain inverses."""
    d = J.shape[1]
    H, precision = J.T @ J, np.linalg.inv(C)
    P = np.linalg.inv(H / sigma**2 + precision)
    bias = P @ precision @ displacement
    error = P @ (J.T @ delta / sigma**2) - bias
    return {
        "posterior_rmse": float(np.sqrt(np.trace(P) / d)),
        "revealed_fraction": float(1 - np.trace(P) / np.trace(C)),
        "map_rmse": float(np.sqrt((bias @ bias + np.trace(P @ H @ P) / sigma**2) / d)),
        "map_i2f": float(np.linalg.norm(error) / math.sqrt(d)),
    }


def posterior_covariance(J: Array, sigma: float, C: Array) -> Array:
    """(H / sigma^2 + C^-1)^-1, [d, d]."""
    return np.asarray(np.linalg.inv(J.T @ J / sigma**2 + np.linalg.inv(C)))


def posterior_rmse(H: Array, sigma: float, tau: float) -> float:
    """sqrt(trace((H / sigma^2 + I / tau^2)^-1) / d)."""
    d = len(H)
    return float(np.sqrt(np.trace(np.linalg.inv(H / sigma**2 + np.eye(d) / tau**2)) / d))


def relative_difference(actual: Any, expected: Any) -> float:
    """||actual - expected|| / ||expected||, absolute where nothing is expected."""
    actual, expected = np.asarray(actual, dtype=float), np.asarray(expected, dtype=float)
    scale = np.linalg.norm(expected)
    return float(np.linalg.norm(actual - expected) / (scale if scale > 0 else 1.0))


def random_spectrum_matrix(eigenvalues: Array, rng: np.random.Generator) -> Array:
    """A symmetric matrix with these eigenvalues and uniformly random eigenvectors."""
    basis, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))
    return (basis * eigenvalues) @ basis.T
