"""Conjugate gradient stopped early, for the steps of an inexact Newton method: all samples at once.

Unlike `conjugate_gradient`, which certifies its solution, this stops at a relative residual (the forcing
term of Dembo, Eisenstat and Steihaug, SIAM J. Numer. Anal. 1982): every iterate is a descent direction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riskaudit.linalg.active import ActiveOperator
from riskaudit.linalg.operators import LinearOperator


def truncated_cg(
    operator: LinearOperator, rhs: Tensor, shift: Tensor, forcing: Tensor, max_products: int
) -> tuple[Tensor, Tensor]:
    """Approximate solution of (H + shift) s = b.

    Args:
        operator: H, symmetric positive semidefinite, [B, n, n].
        rhs: b, [B, n].
        shift: at least 0, [B].
        forcing: relative residual at which a sample stops, [B].
        max_products: per sample at most.

    Returns:
        s [B, n], and H s + shift s [B, n], which comes for nothing and tells how far the model's value falls.
    """
    value, image = torch.zeros_like(rhs), torch.zeros_like(rhs)
    remainder, direction = rhs.clone(), rhs.clone()
    squared = remainder.square().sum(-1)
    limit = forcing.square() * squared
    active = squared > 0
    working = ActiveOperator(operator)
    for _ in range(max_products):
        if not bool(active.any()):
            break
        product = working.matvec(direction, active) + shift[:, None] * direction
        curvature = (direction * product).sum(-1)
        # Zero or negative curvature: the direction lies in the null space up to rounding.
        active = active & (curvature > 0) & torch.isfinite(curvature)
        step = torch.where(active, squared / torch.where(active, curvature, torch.ones_like(curvature)), 0.0)
        value = value + step[:, None] * direction
        image = image + torch.where(active[:, None], step[:, None] * product, 0.0)
        remainder = torch.where(active[:, None], remainder - step[:, None] * product, remainder)
        following = remainder.square().sum(-1)
        ratio = following / torch.where(active, squared, torch.ones_like(squared))
        active = active & (following > limit)
        direction = torch.where(active[:, None], remainder + ratio[:, None] * direction, direction)
        squared = torch.where(active, following, squared)
    return value, image
