"""Conjugate gradient stopped early, for the steps of an inexact Newton method: all samples at once.

Unlike `conjugate_gradient`, which certifies its solution, this stops at a relative residual (the forcing
term of Dembo, Eisenstat and Steihaug, SIAM J. Numer. Anal. 1982): every iterate is a descent direction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from riskaudit.linalg.active import ActiveOperator
from riskaudit.linalg.operators import LinearOperator

# Residuals [B, n] to an approximation of (H + shift)^-1 times them, for a positive definite matrix per sample.
Preconditioner = Callable[[Tensor], Tensor]


def truncated_cg(
    operator: LinearOperator,
    rhs: Tensor,
    shift: Tensor,
    forcing: Tensor,
    max_products: int,
    precondition: Preconditioner | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Approximate solution of (H + shift) s = b.

    Args:
        operator: H, symmetric positive semidefinite, [B, n, n].
        rhs: b, [B, n].
        shift: at least 0, [B].
        forcing: relative residual at which a sample stops, [B].
        max_products: per sample at most.
        precondition: what brings the eigenvalues together; the identity where None.

    Returns:
        s [B, n]; H s + shift s [B, n], which comes for nothing and tells how far the model's value falls; and products
        that every sample took, [B].
    """
    value, image = torch.zeros_like(rhs), torch.zeros_like(rhs)
    precondition = torch.clone if precondition is None else precondition
    remainder, direction = rhs.clone(), precondition(rhs)
    limit = forcing.square() * remainder.square().sum(-1)
    # r . M^-1 r, which is |r|^2 without preconditioner.
    squared = (remainder * direction).sum(-1)
    active = squared > 0
    products = torch.zeros_like(squared, dtype=torch.long)
    working = ActiveOperator(operator)
    for _ in range(max_products):
        if not bool(active.any()):
            break
        product = working.matvec(direction, active) + shift[:, None] * direction
        products += active
        curvature = (direction * product).sum(-1)
        # Zero or negative curvature: the direction lies in the null space up to rounding.
        active = active & (curvature > 0) & torch.isfinite(curvature)
        step = torch.where(active, squared / torch.where(active, curvature, torch.ones_like(curvature)), 0.0)
        value = value + step[:, None] * direction
        image = image + torch.where(active[:, None], step[:, None] * product, 0.0)
        remainder = torch.where(active[:, None], remainder - step[:, None] * product, remainder)
        active = active & (remainder.square().sum(-1) > limit)
        preconditioned = precondition(remainder)
        following = (remainder * preconditioned).sum(-1)
        ratio = following / torch.where(active, squared, torch.ones_like(squared))
        direction = torch.where(active[:, None], preconditioned + ratio[:, None] * direction, direction)
        squared = torch.where(active, following, squared)
    return value, image, products
