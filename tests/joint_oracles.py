"""What the numbers of joint uploads should be: float64, dense, from the formulas, by plain autograd and numpy.

J is the plain derivative of the upload as a function of all its inputs; nothing of the package is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import oracles
import torch
import torch.nn.functional as F
from oracles import Array
from torch import Tensor, nn
from torch.func import functional_call

Released = Callable[[nn.Module, Tensor, Tensor], Tensor]


def gradient(model: nn.Module, weights: dict[str, Tensor], x: Tensor, targets: Tensor) -> dict[str, Tensor]:
    value = F.cross_entropy(functional_call(model, weights, (x,)), targets)
    return dict(zip(weights, torch.autograd.grad(value, list(weights.values()), create_graph=True), strict=True))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values.values()])


def mean_gradient(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    return flat(gradient(model, weights_of(model), x, targets))


def mean_of(change: oracles.Change) -> Released:
    """The mean of what a change makes of every sample's gradient."""

    def released(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        rows = [change(mean_gradient(model, x[i : i + 1], targets[i : i + 1])) for i in range(len(x))]
        return torch.stack(rows).mean(0)

    return released


def then(first: Released, change: oracles.Change) -> Released:
    return lambda model, x, targets: change(first(model, x, targets))


def of_clients(clients: int, one: Released) -> Released:
    """The mean of the uploads of clients with equal parts of the data."""

    def released(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        parts = zip(x.chunk(clients), targets.chunk(clients), strict=True)
        return torch.stack([one(model, *part) for part in parts]).mean(0)

    return released


def trained(
    epochs: int, size: int, rate: float, momentum: float = 0.0, decay: float = 0.0, optimizer: str = "sgd"
) -> Released:
    """theta_0 - theta_K, with the update rules of the textbook (and of torch.optim)."""

    def released(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        theta = start = weights_of(model)
        velocity: dict[str, Tensor] = {}
        first = {name: torch.zeros_like(value) for name, value in start.items()}
        second = dict(first)
        count = 0
        for begin in [begin for _ in range(epochs) for begin in range(0, len(x), size)]:
            count += 1
            slopes = gradient(model, theta, x[begin : begin + size], targets[begin : begin + size])
            slopes = {name: slopes[name] + decay * theta[name] for name in theta}
            if optimizer == "adam":
                first = {name: 0.9 * first[name] + 0.1 * slopes[name] for name in theta}
                second = {name: 0.999 * second[name] + 0.001 * slopes[name] ** 2 for name in theta}
                ups = {name: first[name] / (1 - 0.9**count) for name in theta}
                downs = {name: (second[name] / (1 - 0.999**count)).sqrt() + 1e-8 for name in theta}
                theta = {name: theta[name] - rate * ups[name] / downs[name] for name in theta}
                continue
            velocity = {n: momentum * velocity[n] + slopes[n] for n in theta} if velocity else slopes
            theta = {name: theta[name] - rate * velocity[name] for name in theta}
        return flat(start) - flat(theta)

    return released


def jacobian(released: Released, model: nn.Module, x: Tensor, targets: Tensor) -> Array:
    """[P', n d]: the pullback u -> J^T u is linear in u, so its own derivatives are the columns of J."""
    x = x.clone().requires_grad_()
    r = released(model, x, targets)
    cotangent = torch.zeros_like(r, requires_grad=True)
    (pulled,) = torch.autograd.grad(r, x, cotangent, create_graph=True)
    columns = [torch.autograd.grad(entry, cotangent, retain_graph=True)[0] for entry in pulled.reshape(-1)]
    return torch.stack(columns, dim=1).detach().numpy()


@dataclass(frozen=True)
class Truth:
    """Numbers of every sample of one upload, by proxy; whole holds those of the upload itself.

    Without a prior rounding of H is multiplied by its condition.
    """

    samples: list[dict[str, float]]
    whole: dict[str, float]
    condition: float

    def tolerance(self, proxy: str) -> float:
        """Relative, of float64 on H itself."""
        return max(1e-6, 1e-14 * self.condition) if proxy in ("i2f", "expected_rmse", "lavp_l2_min") else 1e-6


def truth(J: Array, r: Array, delta: Array, displacement: Array, sigma: float, covariances: Sequence[Array]) -> Truth:
    """Every proxy of the upload, from docs/theory.md: by plain inverses of the whole and of its blocks.

    Args:
        J: [P', n d], of full column rank.
        r: [P'].
        delta: the drawn noise, [P'].
        displacement: x - mu, [n d].
        sigma: std of the noise.
        covariances: C_j of every sample, [d, d].
    """
    n, d = len(covariances), len(covariances[0])
    H, precision = J.T @ J, np.zeros((n * d, n * d))
    blocks = [slice(j * d, (j + 1) * d) for j in range(n)]
    for block, C in zip(blocks, covariances, strict=True):
        precision[block, block] = np.linalg.inv(C)
    P = np.linalg.inv(H / sigma**2 + precision)
    bias = P @ precision @ displacement
    variance = P @ H @ P / sigma**2
    error = P @ (J.T @ delta / sigma**2) - bias
    unbiased = np.linalg.lstsq(J, delta, rcond=None)[0]
    inverse = np.linalg.inv(H)
    rows = []
    for block, C in zip(blocks, covariances, strict=True):
        alone = np.linalg.inv(H[block, block] / sigma**2 + precision[block, block])
        rows.append(
            {
                "posterior_rmse": math.sqrt(np.trace(P[block, block]) / d),
                "revealed_fraction": 1 - np.trace(P[block, block]) / np.trace(C),
                "map_rmse": math.sqrt((bias[block] @ bias[block] + np.trace(variance[block, block])) / d),
                "map_i2f": float(np.linalg.norm(error[block]) / math.sqrt(d)),
                "i2f": float(np.linalg.norm(unbiased[block]) / math.sqrt(d)),
                "expected_rmse": sigma * math.sqrt(np.trace(inverse[block, block]) / d),
                "informed_posterior_rmse": math.sqrt(np.trace(alone) / d),
                "informed_revealed_fraction": 1 - np.trace(alone) / np.trace(C),
            }
        )
    eigenvalues = np.linalg.eigvalsh(H)
    cosine = np.linalg.eigvalsh(oracles.cosine_hessian(J, r))
    whole = {
        "gradient_norm": float(np.linalg.norm(r)),
        "i2f_lower_bound": float(np.linalg.norm(J.T @ delta) / (eigenvalues[-1] * math.sqrt(n * d))),
        "lavp_l2_max": 2 * eigenvalues[-1],
        "lavp_l2_min": 2 * eigenvalues[0],
        "lavp_cosine_max": cosine[-1],
        "lavp_cosine_min": cosine[0],
    }
    return Truth(rows, whole, float(eigenvalues[-1] / eigenvalues[0]))
