"""The loop that Neumann series and gradient descent share: z <- z + step * correction(b - A z), A = H + shift.

Without a shift the smallest eigenvalue is estimated from how fast the residual still shrinks: near the
end each step multiplies it by 1 - step * l_n^order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riskaudit.linalg.active import ActiveOperator, Deadline
from riskaudit.linalg.operators import LinearOperator
from riskaudit.linalg.solution import Solution
from riskaudit.linalg.solvers.inverses import finish, relative_error_bound


def iterate(
    operator: LinearOperator,
    rhs: Tensor,
    shift: Tensor,
    *,
    step: Tensor,
    order: int,
    tolerance: float,
    max_matvecs: int,
    deadline: Deadline | None = None,
) -> Solution:
    """Iterate until every sample's error bound is within ``tolerance`` or the products are used up.

    Args:
        operator: H, [B, n, n].
        rhs: b, [B, n].
        shift: [B], float64.
        step: [B], float64.
        order: 1 to step along the residual r (Neumann), 2 along A r (gradient of ||A z - b||^2 / 2).
        tolerance: bound on the relative error.
        max_matvecs: products per sample at most.
        deadline: asked before each step; True ends the iteration with what is there.
    """
    held = ActiveOperator(operator)

    def apply(vector: Tensor) -> Tensor:
        return held.matvec(vector, active) + shift[:, None].to(rhs.dtype) * vector

    value, remainder = torch.zeros_like(rhs), rhs.clone()
    norm = remainder.norm(dim=-1).double()
    active = norm > 0
    claimed = ~active
    smallest = torch.where(shift > 0, shift, torch.full_like(shift, float("inf")))
    matvecs = torch.zeros(len(rhs), dtype=torch.long, device=rhs.device)
    for _ in range(max_matvecs // order):
        if not bool(active.any()) or (deadline is not None and deadline()):
            break
        correction = remainder if order == 1 else apply(remainder)
        scaled = torch.where(active, step, torch.zeros_like(step)).to(rhs.dtype)[:, None] * correction
        value = value + scaled
        remainder = remainder - apply(scaled)
        matvecs += order * active.long()
        following = remainder.norm(dim=-1).double()
        decay = ((1 - following / norm.clamp_min(1e-300)).clamp_min(0.0) / step) ** (1 / order)
        smallest = torch.where(active & (shift == 0), torch.minimum(smallest, decay), smallest)
        norm = following
        reached = relative_error_bound(norm, value.norm(dim=-1).double(), smallest) <= tolerance
        claimed = claimed | (active & reached)
        # A step size of the caller's own may diverge: stop before infinities spread.
        active = active & ~reached & torch.isfinite(norm) & (norm < 1e100)
    return finish(operator, rhs, shift, value, claimed, tolerance, smallest, matvecs)
