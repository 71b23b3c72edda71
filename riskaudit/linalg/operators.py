"""Linear operators batched over samples: B operators of one shape, applied together.

An operator maps [B, n] to [B, m]. Formats are converted and shapes checked once, in the public
methods; a subclass writes only the mathematics on K columns at a time. Letters: B samples, n inputs
(the dimension d of one private sample for a Jacobian), m outputs (released entries P), K columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor


class LinearOperator(ABC):
    """B linear maps of one shape. ``shape`` is (m, n); all maps share dtype and device."""

    def __init__(self, num_samples: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.num_samples = num_samples
        self.shape = shape
        self.dtype = dtype
        self.device = device

    @abstractmethod
    def _matmat(self, columns: Tensor) -> Tensor:
        """Apply to columns [B, n, K]; returns [B, m, K]."""

    @abstractmethod
    def _rmatmat(self, columns: Tensor) -> Tensor:
        """Apply the transpose to columns [B, m, K]; returns [B, n, K]."""

    @abstractmethod
    def select(self, indices: list[int]) -> LinearOperator:
        """The operators of some samples only, in the order given."""

    @final
    def matmat(self, columns: Tensor) -> Tensor:
        """Products with K vectors per sample: [B, n, K] to [B, m, K].

        Raises:
            ValueError: the columns' shape isn't [B, n, K].
        """
        self._check(columns, self.shape[1])
        return self._matmat(columns)

    @final
    def rmatmat(self, columns: Tensor) -> Tensor:
        """Transposed products with K vectors per sample: [B, m, K] to [B, n, K].

        Raises:
            ValueError: the columns' shape isn't [B, m, K].
        """
        self._check(columns, self.shape[0])
        return self._rmatmat(columns)

    @final
    def matvec(self, vector: Tensor) -> Tensor:
        """One product per sample: [B, n] to [B, m]."""
        return self.matmat(vector.unsqueeze(-1)).squeeze(-1)

    @final
    def rmatvec(self, vector: Tensor) -> Tensor:
        """One transposed product per sample: [B, m] to [B, n]."""
        return self.rmatmat(vector.unsqueeze(-1)).squeeze(-1)

    @final
    def _check(self, columns: Tensor, length: int) -> None:
        if columns.ndim != 3 or columns.shape[:2] != (self.num_samples, length):
            raise ValueError(
                f"expected columns of shape [{self.num_samples}, {length}, K], found {list(columns.shape)}"
            )


@final
class MatrixOperator(LinearOperator):
    """Explicit matrices [B, m, n] as an operator."""

    def __init__(self, matrices: Tensor) -> None:
        super().__init__(matrices.shape[0], (matrices.shape[1], matrices.shape[2]), matrices.dtype, matrices.device)
        self.matrices = matrices

    def _matmat(self, columns: Tensor) -> Tensor:
        return self.matrices @ columns

    def _rmatmat(self, columns: Tensor) -> Tensor:
        return self.matrices.mT @ columns

    def select(self, indices: list[int]) -> MatrixOperator:
        """The matrices of some samples only."""
        return MatrixOperator(self.matrices[indices])


class GramFactor(LinearOperator):
    """An operator J that has its own way to J^T J, cheaper than one product after the other."""

    @abstractmethod
    def _gram_matmat(self, columns: Tensor) -> Tensor:
        """Apply J^T J to columns [B, n, K]; returns [B, n, K]."""

    @abstractmethod
    def _gram_rows(self, columns: Tensor) -> Tensor:
        """See `gram_rows`."""

    @final
    def gram_rows(self, columns: Tensor) -> Tensor:
        """J on K vectors per sample up to a rotation: [B, n, K] to [B, K, r], whose rows have J v's inner products.

        Raises:
            ValueError: the columns' shape isn't [B, n, K].
        """
        self._check(columns, self.shape[1])
        return self._gram_rows(columns)

    @final
    def gram_matmat(self, columns: Tensor) -> Tensor:
        """J^T J on K vectors per sample: [B, n, K] to [B, n, K].

        Raises:
            ValueError: the columns' shape isn't [B, n, K].
        """
        self._check(columns, self.shape[1])
        return self._gram_matmat(columns)


@final
class GramOperator(LinearOperator):
    """H = J^T J of an operator J: symmetric and positive semidefinite, [B, n, n]."""

    def __init__(self, jacobian: LinearOperator) -> None:
        n = jacobian.shape[1]
        super().__init__(jacobian.num_samples, (n, n), jacobian.dtype, jacobian.device)
        self.jacobian = jacobian

    def _matmat(self, columns: Tensor) -> Tensor:
        if isinstance(self.jacobian, GramFactor):
            return self.jacobian.gram_matmat(columns)
        return self.jacobian.rmatmat(self.jacobian.matmat(columns))

    def _rmatmat(self, columns: Tensor) -> Tensor:
        return self._matmat(columns)

    def select(self, indices: list[int]) -> GramOperator:
        """The Gram operators of some samples only."""
        return GramOperator(self.jacobian.select(indices))


def identity_columns(operator: LinearOperator) -> Tensor:
    """The n unit vectors for every sample as a view, [B, n, n]."""
    n = operator.shape[1]
    return torch.eye(n, dtype=operator.dtype, device=operator.device).expand(operator.num_samples, n, n)


@final
class DowndatedOperator(LinearOperator):
    """A - v v^T for a symmetric operator A and vectors v [B, n]."""

    def __init__(self, operator: LinearOperator, vector: Tensor) -> None:
        super().__init__(operator.num_samples, operator.shape, operator.dtype, operator.device)
        self.operator = operator
        self.vector = vector

    def _matmat(self, columns: Tensor) -> Tensor:
        overlap = torch.einsum("bn,bnk->bk", self.vector, columns)
        return self.operator.matmat(columns) - self.vector[:, :, None] * overlap[:, None, :]

    def _rmatmat(self, columns: Tensor) -> Tensor:
        return self._matmat(columns)

    def select(self, indices: list[int]) -> DowndatedOperator:
        """The downdated operators of some samples only."""
        return DowndatedOperator(self.operator.select(indices), self.vector[indices])
