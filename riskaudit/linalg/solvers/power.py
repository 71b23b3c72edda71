"""Power iteration: v <- H v / ||H v||, Rayleigh quotient v^T H v.

The method of the I2F and LAVP papers, kept beside Lanczos, which needs about a third of its products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg.operators import LinearOperator
from riskaudit.linalg.solution import Solution, statuses
from riskaudit.linalg.solvers.eigenvalues import (
    EigenvalueSolver,
    certified_upper_end,
    power_shortfall,
    register_eigenvalue_solver,
)


@register_eigenvalue_solver("power")
@final
@dataclass(frozen=True)
class Power(EigenvalueSolver):
    """Largest eigenvalue by power iteration: the papers' own method.

    Attributes:
        tolerance: a sample has converged when ||H v - theta v|| <= tolerance * theta, so an
            eigenvalue lies that close to theta.
        max_matvecs: products per sample at most.
        failure: probability, per sample, that ``high`` lies below l_1.
    """

    tolerance: float = 1e-6
    max_matvecs: int = 100
    failure: float = 1e-4

    @override
    def solve(self, operator: LinearOperator, start: Tensor) -> Solution:
        vector = start / start.norm(dim=-1, keepdim=True)
        value = torch.zeros(len(start), dtype=torch.float64, device=start.device)
        residual = torch.full_like(value, float("inf"))
        matvecs = torch.zeros(len(start), dtype=torch.long, device=start.device)
        done = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        for _ in range(self.max_matvecs):
            product = operator.matvec(vector)
            quotient = (product * vector).sum(-1)
            norm = product.norm(dim=-1, keepdim=True)
            distance = (product - quotient[:, None] * vector).norm(dim=-1)
            relative = torch.where(norm[:, 0] > 0, distance / norm[:, 0].clamp_min(1e-300), torch.zeros_like(distance))
            value = torch.where(done, value, quotient.double())
            residual = torch.where(done, residual, relative.double())
            matvecs += (~done).long()
            done = done | (residual <= self.tolerance)
            if bool(done.all()):
                break
            vector = torch.where(done[:, None] | (norm == 0), vector, product / norm.clamp_min(1e-300))
        shortfall = torch.tensor(
            [power_shortfall(int(k), operator.shape[1], self.failure) for k in matvecs.tolist()],
            dtype=torch.float64,
            device=start.device,
        )
        value = value.clamp_min(0.0)
        return Solution(value, value, certified_upper_end(value, shortfall), statuses(done), residual, matvecs)
