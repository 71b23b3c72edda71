"""Dense H = J^T J and its eigendecomposition in float64: the exact reference, default where affordable.

The whole spectrum also gives l_1 and the inverse, so "dense" is an eigenvalue solver and an inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from scipy.linalg.blas import dsyrk
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg.operators import LinearOperator, identity_columns, tell_products
from riskaudit.linalg.solution import Solution
from riskaudit.linalg.solvers.eigenvalues import EigenvalueSolver, register_eigenvalue_solver
from riskaudit.linalg.solvers.inverses import InverseSolver, register_inverse_solver
from riskaudit.results import Status

# One sample's J, in float64, is held at once up to this size; a larger one never is.
JACOBIAN_BYTES = 4 * 2**30
# Numbers in a block of an operator's columns, and in the J of all samples that are worked on at once (1 GB).
COLUMN_BLOCK_ENTRIES = 2**24
GROUP_ENTRIES = 2**27
GROUP_SAMPLES = 16
# Columns of J per sample made at once.
JACOBIAN_BLOCK = 4


@dataclass(frozen=True)
class Spectrum:
    """All eigenvalues ascending [B, n], eigenvectors as columns [B, n, n], float64, and products used.

    Eigenvalues are those of a positive semidefinite matrix: rounding below zero is cut off. Values at
    or below ``resolution`` [B] can't be told from zero; ``rounding`` is what that takes relative to n l_1.
    """

    values: Tensor
    vectors: Tensor
    matvecs: int
    rounding: float

    @property
    def resolution(self) -> Tensor:
        """The rounding error of the smallest eigenvalues, [B]."""
        return self.values.shape[-1] * self.rounding * self.values[:, -1]

    @property
    def rank(self) -> Tensor:
        """Number of eigenvalues that can be told from zero, [B]."""
        return (self.values > self.resolution[:, None]).sum(-1)

    @classmethod
    def of(cls, operator: LinearOperator) -> Spectrum:
        """Decompose a symmetric positive semidefinite operator."""
        operator.require_psd()
        values, vectors = zip(*(torch.linalg.eigh(matrix) for matrix in dense_matrices(operator)), strict=True)
        rounding = torch.finfo(operator.dtype).eps
        if _held_factor(operator) is not None:
            # Squared in float64, J's own rounding reaches H's eigenvalues only as its square.
            rounding = max(torch.finfo(torch.float64).eps, rounding**2)
        return cls(torch.stack(values).clamp_min(0.0), torch.stack(vectors), operator.shape[1], rounding)

    def solve(self, rhs: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """(H + shift)^-1 rhs [B, n] for shift [B] >= 0, and which samples are singular [B]."""
        shifted = self.values + shift[:, None]
        singular = (shifted <= self.resolution[:, None]).any(-1)
        coefficients = torch.einsum("bnk,bn->bk", self.vectors, rhs.double())
        safe = torch.where(singular[:, None], torch.ones_like(shifted), shifted)
        return torch.einsum("bnk,bk->bn", self.vectors, coefficients / safe), singular


def _held_factor(operator: LinearOperator) -> LinearOperator | None:
    """J of an operator J^T J, where one sample's J is small enough to be held and squared in float64."""
    factor = operator.factor
    if factor is None or 8 * factor.shape[0] * factor.shape[1] > JACOBIAN_BYTES:
        return None
    return factor


def dense_matrices(operator: LinearOperator) -> Iterator[Tensor]:
    """The n x n matrix of every sample, symmetrised, float64; a few samples are worked on at once."""
    m, n = (operator if operator.factor is None else operator.factor).shape
    together = max(1, min(operator.num_samples, GROUP_SAMPLES, GROUP_ENTRIES // (m * n)))
    for first in range(0, operator.num_samples, together):
        group = operator.select(list(range(first, min(first + together, operator.num_samples))))
        factor = _held_factor(group)
        if factor is not None:
            # Far cheaper than n products with H: a few more with J, and one product of matrices.
            yield from map(_gram, _rows(_rotated(factor), group, JACOBIAN_BLOCK))
        else:
            block = max(1, min(n, COLUMN_BLOCK_ENTRIES // m))
            for matrix in _rows(_transposed(group), group, block):
                yield (matrix + matrix.mT) / 2


def _rotated(factor: LinearOperator) -> Callable[[Tensor], Tensor]:
    """The rows of `LinearOperator.gram_rows`, each of which is half a product with H."""

    def multiply(columns: Tensor) -> Tensor:
        rows = factor.gram_rows(columns)
        tell_products(factor, columns.shape[2] / 2)
        return rows

    return multiply


def _transposed(operator: LinearOperator) -> Callable[[Tensor], Tensor]:
    """Products with columns [B, n, K] as rows [B, K, m]."""
    return lambda columns: operator.matmat(columns).mT


def _rows(multiply: Callable[[Tensor], Tensor], operator: LinearOperator, block: int) -> Tensor:
    """What ``multiply`` makes of the n unit vectors, [B, n, K] to [B, K, r]: [B, n, r] in float64."""
    identity = identity_columns(operator)
    rows: Tensor | None = None
    for first in range(0, operator.shape[1], block):
        part = multiply(identity[:, :, first : first + block])
        if rows is None:
            shape = (operator.num_samples, operator.shape[1], part.shape[2])
            rows = torch.empty(shape, dtype=torch.float64, device=operator.device)
        rows[:, first : first + block] = part
    assert rows is not None
    return rows


def _gram(rows: Tensor) -> Tensor:
    """F F^T of one sample's rows F [n, r], float64."""
    if rows.is_cuda:
        return rows @ rows.mT
    # Half the work of a general product.
    triangle = torch.from_numpy(dsyrk(1.0, rows.numpy().T, trans=1, lower=1))
    return triangle + triangle.mT - torch.diag(triangle.diagonal())


@register_eigenvalue_solver("dense")
@final
@dataclass(frozen=True)
class Dense(EigenvalueSolver):
    """Largest eigenvalue from the whole dense spectrum in float64: exact."""

    @override
    def solve(self, operator: LinearOperator, start: Tensor) -> Solution:
        return self.read(Spectrum.of(operator))

    @staticmethod
    def read(spectrum: Spectrum) -> Solution:
        """l_1 from a spectrum that is known already."""
        value = spectrum.values[:, -1]
        zero = torch.zeros_like(value)
        matvecs = torch.full_like(value, spectrum.matvecs, dtype=torch.long)
        status: tuple[Status, ...] = tuple("exact" for _ in range(len(value)))
        return Solution(value, value, value, status, zero, matvecs)


@register_inverse_solver("dense")
@final
@dataclass(frozen=True)
class DenseInverse(InverseSolver):
    """Solve with H from its whole dense spectrum: exact."""

    @override
    def solve(self, operator: LinearOperator, rhs: Tensor, shift: Tensor, largest: Tensor) -> Solution:
        return self.read(Spectrum.of(operator), rhs, shift)

    @staticmethod
    def read(spectrum: Spectrum, rhs: Tensor, shift: Tensor) -> Solution:
        """Solve with a spectrum that is known already."""
        value, singular = spectrum.solve(rhs, shift)
        norm = value.norm(dim=-1)
        applied = torch.einsum(
            "bnk,bk->bn",
            spectrum.vectors,
            (spectrum.values + shift[:, None]) * torch.einsum("bnk,bn->bk", spectrum.vectors, value),
        )
        residual = (rhs.double() - applied).norm(dim=-1) / rhs.double().norm(dim=-1).clamp_min(1e-300)
        status: tuple[Status, ...] = tuple("singular" if lost else "exact" for lost in singular.tolist())
        return Solution(
            value=value,
            low=norm,
            high=norm,
            status=status,
            residual=residual,
            matvecs=torch.full_like(norm, spectrum.matvecs, dtype=torch.long),
        )
