"""Richardson iterations: z <- z + step * correction(b - A z) for A = H + shift, at no cost beyond products.

Zhang et al., NeurIPS 2023, section 4, use both: the Neumann series (H + shift)^-1 b = alpha sum_k (I - alpha A)^k b,
0 < alpha < 2 / (l_1 + shift), which corrects by the residual r = b - A z, and gradient descent on ||A z - b||^2 / 2,
which corrects by A r and so squares the condition number. The default step, 1 / (certified l_1 + shift) to the power of
the correction's order, always converges, however slowly; a larger one diverges once l_1 grows.

Without a shift the smallest eigenvalue is estimated from how fast the residual still shrinks: near the
end each step multiplies it by 1 - step * l_n^order.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg.active import ActiveOperator, Deadline
from riskaudit.linalg.operators import LinearOperator
from riskaudit.linalg.solution import Solution
from riskaudit.linalg.solvers.inverses import InverseSolver, finish, register_inverse_solver, relative_error_bound


@dataclass(frozen=True)
class Richardson(InverseSolver, ABC):
    """Solve with H by steps along a correction made of the residual.

    Attributes:
        tolerance: relative error of the solution at which a sample counts as converged.
        max_matvecs: products per sample at most, besides the one that checks the residual.
        step: or None for the one that always converges.
        deadline: asked before each step; True ends the iteration with what is there.
        order: products per step, 1 to correct by r, 2 by A r.
    """

    order: ClassVar[int]

    tolerance: float = 1e-7
    max_matvecs: int = 1000
    step: float | None = None
    deadline: Deadline | None = None

    @override
    @final
    def solve(self, operator: LinearOperator, rhs: Tensor, shift: Tensor, largest: Tensor) -> Solution:
        step = (largest + shift) ** -self.order if self.step is None else torch.full_like(largest, self.step)
        working = ActiveOperator(operator)

        def apply(vector: Tensor) -> Tensor:
            return working.matvec(vector, active) + shift[:, None].to(rhs.dtype) * vector

        value, remainder = torch.zeros_like(rhs), rhs.clone()
        norm = remainder.norm(dim=-1).double()
        active = norm > 0
        claimed = ~active
        smallest = torch.where(shift > 0, shift, torch.full_like(shift, float("inf")))
        matvecs = torch.zeros(len(rhs), dtype=torch.long, device=rhs.device)
        for _ in range(self.max_matvecs // self.order):
            if not bool(active.any()) or (self.deadline is not None and self.deadline()):
                break
            correction = remainder if self.order == 1 else apply(remainder)
            scaled = torch.where(active, step, torch.zeros_like(step)).to(rhs.dtype)[:, None] * correction
            value = value + scaled
            remainder = remainder - apply(scaled)
            matvecs += self.order * active.long()
            following = remainder.norm(dim=-1).double()
            decay = ((1 - following / norm.clamp_min(1e-300)).clamp_min(0.0) / step) ** (1 / self.order)
            smallest = torch.where(active & (shift == 0), torch.minimum(smallest, decay), smallest)
            norm = following
            reached = relative_error_bound(norm, value.norm(dim=-1).double(), smallest) <= self.tolerance
            claimed = claimed | (active & reached)
            # A step size of the caller's own may diverge: stop before infinities spread.
            active = active & ~reached & torch.isfinite(norm) & (norm < 1e100)
        return finish(operator, rhs, shift, value, claimed, self.tolerance, smallest, matvecs)


@register_inverse_solver("neumann")
@final
class Neumann(Richardson):
    """Solve with H by the Neumann series."""

    order = 1


@register_inverse_solver("least-squares")
@final
class LeastSquares(Richardson):
    """Solve with H by gradient descent on the squared residual: the I2F paper's own."""

    order = 2
