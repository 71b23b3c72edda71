"""Lanczos iteration with full reorthogonalisation, for all samples of a batch at once.

After k products, H Q = Q T + beta_k q_{k+1} e_k^T with orthonormal Q [n, k] and tridiagonal T.
Eigenvalues of T (Ritz values) lie between l_n and l_1; the residual of a Ritz pair is |beta_k z_k|.
T is kept in float64 whatever the operator's dtype. Not meant for more than a few hundred products:
the basis is stored and every new vector is orthogonalised against all of it, twice.

Every sample has a space of its own length: one that is finished leaves, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg.active import ActiveOperator, Deadline
from riskaudit.linalg.krylov.certificates import is_at_most, upper_end
from riskaudit.linalg.krylov.tridiagonal import EXHAUSTED_ROUNDINGS, RitzPairs, Tridiagonal
from riskaudit.linalg.operators import LinearOperator
from riskaudit.linalg.solution import Solution, statuses
from riskaudit.linalg.solvers.eigenvalues import EigenvalueSolver, register_eigenvalue_solver

# Basis vectors for which room is made at a time.
BASIS_BLOCK = 16


@dataclass(frozen=True, eq=False)
class KrylovSpace:
    """The Krylov space of one sample.

    Attributes:
        tridiagonal: T.
        basis: orthonormal rows q_1 to q_k, and q_{k+1} unless the space is invariant, [k + 1 or k, n].
    """

    tridiagonal: Tridiagonal
    basis: Tensor

    def ritz_vectors(self, indices: list[int]) -> Tensor:
        """Ritz vectors of H as orthonormal rows, for some of the Ritz values: [m, n], the operator's dtype."""
        pairs = self.tridiagonal.ritz()
        chosen = torch.from_numpy(np.ascontiguousarray(pairs.vectors[:, indices].T)).to(self.basis)
        return chosen @ self.basis[: len(pairs.values)]


# Whether a sample's iteration may end, given its position and its space so far.
Finished = Callable[[int, KrylovSpace], bool]


def lanczos(
    operator: LinearOperator,
    start: Tensor,
    finished: Finished,
    max_products: int,
    deadline: Deadline | None = None,
) -> list[KrylovSpace]:
    """A Krylov space per sample, each as long as it has to be.

    Args:
        operator: symmetric positive semidefinite, [B, n, n].
        start: b, [B, n], in the operator's dtype.
        finished: asked with a sample's position and its space after each of its products. True, or an
            invariant space, and the sample leaves: no further product counts for it.
        max_products: per sample at most.
        deadline: asked before each product; True ends all of them with what is there, which may be a
            space without a product.

    Raises:
        ValueError: the operator isn't known to be symmetric and positive semidefinite.
    """
    operator.require_psd()
    n, roundings = operator.shape[1], operator.rounding
    norms = start.double().norm(dim=-1)
    start_norms = norms.tolist()
    basis = (start / torch.where(norms > 0, norms, 1.0).to(start.dtype)[:, None]).unsqueeze(1)
    diagonals: list[list[float]] = [[] if norm > 0 else [0.0] for norm in start_norms]
    off_diagonals: list[list[float]] = [[] if norm > 0 else [0.0] for norm in start_norms]
    spaces: dict[int, KrylovSpace] = {}

    def tridiagonal(index: int) -> Tridiagonal:
        products = np.array(diagonals[index]), np.array(off_diagonals[index])
        return Tridiagonal(*products, n, start_norms[index], roundings[index])

    def space(row: int, final: Tridiagonal) -> KrylovSpace:
        return KrylovSpace(final, basis[row, : len(final.diagonal) + (0 if final.exhausted else 1)])

    def leave(row: int, index: int, final: Tridiagonal) -> None:
        spaces[index] = KrylovSpace(final, space(row, final).basis.clone())

    working = ActiveOperator(operator)
    active = [norm > 0 for norm in start_norms]
    for index in [index for index, unfinished in enumerate(active) if not unfinished]:
        leave(index, index, tridiagonal(index))
    steps = 0
    while any(active) and steps < max_products and not (deadline is not None and deadline()):
        remaining = working.narrow(active)
        if remaining is not None:
            basis, active = basis[remaining], [True] * len(remaining)
        basis, figures = _extended(working.operator, basis, steps)
        steps += 1
        for row, index in [pair for pair in enumerate(working.rows) if active[pair[0]]]:
            alpha, following, scale = figures[row]
            invariant = following <= EXHAUSTED_ROUNDINGS * roundings[index] * n**0.5 * scale or steps >= n
            diagonals[index].append(alpha)
            off_diagonals[index].append(0.0 if invariant else following)
            present = tridiagonal(index)
            if present.exhausted or finished(index, space(row, present)):
                active[row] = False
                leave(row, index, present)
    for row, index in [pair for pair in enumerate(working.rows) if active[pair[0]]]:
        leave(row, index, tridiagonal(index))
    return [spaces[index] for index in range(len(start))]


def _extended(operator: LinearOperator, basis: Tensor, steps: int) -> tuple[Tensor, list[list[float]]]:
    """The basis with one more vector per sample, and alpha, beta and the length of the product for each.

    Rows of samples that have left may hold anything that is finite.
    """
    if basis.shape[1] < steps + 2:
        basis = torch.cat([basis, basis.new_zeros(len(basis), BASIS_BLOCK, basis.shape[2])], dim=1)
    orthonormal, current = basis[:, : steps + 1], basis[:, steps]
    product = operator.matvec(current)
    remainder = product
    for _ in range(2):
        coefficients = orthonormal @ remainder.unsqueeze(-1)
        remainder = remainder - (orthonormal.mT @ coefficients).squeeze(-1)
    beta = remainder.norm(dim=-1)
    basis[:, steps + 1] = remainder / beta.clamp_min(torch.finfo(beta.dtype).tiny)[:, None]
    figures = torch.stack([(product * current).sum(-1), beta, product.norm(dim=-1)], dim=-1).double().tolist()
    return basis, figures


def largest_error(pairs: RitzPairs) -> float:
    """Estimated distance of the largest Ritz value below the eigenvalue that it approaches.

    The smaller of the residual and residual^2 / gap, the gap being to the second Ritz value (Parlett,
    The Symmetric Eigenvalue Problem, section 11.7). Infinite where there is no Ritz value.
    """
    if not len(pairs.values):
        return float("inf")
    residual = float(pairs.residuals[-1])
    if len(pairs.values) < 2:
        return residual
    gap = float(pairs.values[-1] - pairs.values[-2]) - residual
    return min(residual, residual * (residual / gap)) if gap > 0 else residual


@register_eigenvalue_solver("lanczos")
@final
@dataclass(frozen=True)
class Lanczos(EigenvalueSolver):
    """Largest eigenvalue by Lanczos iteration: fewest products.

    Attributes:
        tolerance: relative error of l_1 at which a sample counts as converged.
        max_matvecs: products per sample at most.
        failure: probability, per sample, that ``high`` lies below l_1. Divide the whole audit's
            probability by the number of its samples.
        precision: if given, a sample is also iterated until ``high`` <= (1 + precision) value.
        deadline: asked before each product; True ends the iteration with what is there.
    """

    tolerance: float = 1e-6
    max_matvecs: int = 100
    failure: float = 1e-4
    precision: float | None = None
    deadline: Deadline | None = None

    @override
    def solve(self, operator: LinearOperator, start: Tensor) -> Solution:
        return self.read(self.run(operator, start))

    def run(self, operator: LinearOperator, start: Tensor, also: Finished | None = None) -> list[KrylovSpace]:
        """Iterate every sample until it is finished, by another condition ``also``, or its products are used up."""

        def finished(index: int, space: KrylovSpace) -> bool:
            return self._finished(index, space) and (also is None or also(index, space))

        return lanczos(operator, start, finished, self.max_matvecs, self.deadline)

    def _finished(self, _: int, space: KrylovSpace) -> bool:
        tridiagonal = space.tridiagonal
        if not self.converged(tridiagonal):
            return False
        if self.precision is None:
            return True
        return is_at_most(tridiagonal, self.failure, (1 + self.precision) * tridiagonal.largest)

    def converged(self, tridiagonal: Tridiagonal) -> bool:
        """Whether the largest Ritz value has converged."""
        return tridiagonal.exhausted or largest_error(tridiagonal.ritz()) <= self.tolerance * tridiagonal.largest

    def read(self, spaces: list[KrylovSpace]) -> Solution:
        """l_1 from the spaces that `run` made, on their device."""
        device = spaces[0].basis.device if spaces else None
        every = [space.tridiagonal for space in spaces]

        def column(numbers: list[float]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float64, device=device)

        return Solution(
            value=column([each.largest for each in every]),
            low=column([max(0.0, each.largest - each.slack()) for each in every]),
            high=column([upper_end(each, self.failure) for each in every]),
            status=statuses(torch.tensor([self.converged(each) for each in every], dtype=torch.bool)),
            residual=column([_relative_residual(each) for each in every]),
            matvecs=torch.tensor([each.num_products for each in every], dtype=torch.long, device=device),
        )


def _relative_residual(tridiagonal: Tridiagonal) -> float:
    """Residual of the largest Ritz pair relative to its value; 0 where H is 0, infinite without a product."""
    if not len(tridiagonal.diagonal):
        return float("inf")
    largest = tridiagonal.largest
    return float(tridiagonal.ritz().residuals[-1]) / largest if largest > 0 else 0.0
