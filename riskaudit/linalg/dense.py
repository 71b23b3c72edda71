"""Dense H = J^T J and its eigendecomposition in float64: the exact reference, default where affordable.

The whole spectrum also gives l_1 and the inverse, so "dense" is an eigenvalue solver and an inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard, final

import torch
from torch import Tensor

from riskaudit.linalg.eigenvalues import EigenvalueSolver, register_eigenvalue_solver
from riskaudit.linalg.inverses import InverseSolver, register_inverse_solver
from riskaudit.linalg.operators import GramOperator, LinearOperator, identity_columns
from riskaudit.linalg.solution import Solution
from riskaudit.results import Status

# One sample's J, in float64, is held at once up to this size; a larger one never is.
JACOBIAN_BYTES = 4 * 2**30
# A block of J's columns of at most this many numbers is held beside J itself.
COLUMN_BLOCK_ENTRIES = 2**24


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
        """Decompose a symmetric positive semidefinite operator, one sample at a time."""
        parts = [torch.linalg.eigh(_dense_matrix(operator.select([index]))) for index in range(operator.num_samples)]
        values = torch.stack([part[0] for part in parts]).clamp_min(0.0)
        rounding = torch.finfo(operator.dtype).eps
        if _holds_jacobian(operator):
            # Squared in float64, J's own rounding reaches H's eigenvalues only as its square.
            rounding = max(torch.finfo(torch.float64).eps, rounding**2)
        return cls(values, torch.stack([part[1] for part in parts]), operator.shape[1], rounding)

    def solve(self, rhs: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """(H + shift)^-1 rhs [B, n] for shift [B] >= 0, and which samples are singular [B]."""
        shifted = self.values + shift[:, None]
        singular = (shifted <= self.resolution[:, None]).any(-1)
        coefficients = torch.einsum("bnk,bn->bk", self.vectors, rhs.double())
        safe = torch.where(singular[:, None], torch.ones_like(shifted), shifted)
        return torch.einsum("bnk,bk->bn", self.vectors, coefficients / safe), singular


def _holds_jacobian(operator: LinearOperator) -> TypeGuard[GramOperator]:
    """Whether one sample's J is small enough to be held and squared in float64."""
    return isinstance(operator, GramOperator) and 8 * operator.jacobian.shape[0] * operator.shape[1] <= JACOBIAN_BYTES


def _dense_matrix(operator: LinearOperator) -> Tensor:
    """The n x n matrix of a one-sample operator, symmetrised, float64."""
    if _holds_jacobian(operator):
        # J^T J as one product of matrices is far cheaper than n products with J^T.
        jacobian = _columns(operator.jacobian)
        matrix = jacobian.mT @ jacobian
    else:
        matrix = _columns(operator)
    return (matrix + matrix.mT) / 2


def _columns(operator: LinearOperator) -> Tensor:
    """A one-sample operator as a matrix [m, n], float64, built block by block of columns."""
    m, n = operator.shape
    block = max(1, min(n, COLUMN_BLOCK_ENTRIES // m))
    matrix = torch.empty(m, n, dtype=torch.float64, device=operator.device)
    identity = identity_columns(operator)
    for first in range(0, n, block):
        matrix[:, first : first + block] = operator.matmat(identity[:, :, first : first + block])[0]
    return matrix


@register_eigenvalue_solver("dense")
@final
@dataclass(frozen=True)
class Dense(EigenvalueSolver):
    """Largest eigenvalue from the whole dense spectrum in float64: exact."""

    def solve(self, operator: LinearOperator, start: Tensor) -> Solution:
        """See `EigenvalueSolver.solve`; ``start`` is not used."""
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

    def solve(self, operator: LinearOperator, rhs: Tensor, shift: Tensor, largest: Tensor) -> Solution:
        """See `InverseSolver.solve`; ``largest`` is not used."""
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
