"""Linear operators batched over samples: B operators of one shape, applied together.

An operator maps [B, n] to [B, m]. Formats are converted and shapes checked once, in the public
methods; a subclass writes only the mathematics on K columns at a time. Letters: B samples, n inputs
(the dimension d of one private sample for a Jacobian), m outputs (released entries P), K columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import final

import torch
from torch import Tensor
from typing_extensions import override


class LinearOperator(ABC):
    """B linear maps of one shape. ``shape`` is (m, n); all maps share dtype and device.

    `symmetric`, `psd` and `factor` are facts about the maps, which decide what a solver may do with them.
    """

    def __init__(self, num_samples: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.num_samples = num_samples
        self.shape = shape
        self.dtype = dtype
        self.device = device

    @abstractmethod
    def _matmat(self, columns: Tensor) -> Tensor:
        """Apply to columns [B, n, K]; returns [B, m, K]."""

    @abstractmethod
    def select(self, indices: list[int]) -> LinearOperator:
        """The operators of some samples only, in the order given."""

    @property
    def psd(self) -> bool:
        """Whether every map is known to be symmetric and positive semidefinite."""
        return False

    @property
    def symmetric(self) -> bool:
        """Whether every map is known to be its own transpose."""
        return self.psd

    @property
    def factor(self) -> LinearOperator | None:
        """J where the maps are known as J^T J."""
        return None

    @property
    def rounding(self) -> list[float]:
        """Unit roundoff of each map's products with vectors, relative to the map's norm."""
        return [torch.finfo(self.dtype).eps] * self.num_samples

    def _rmatmat(self, columns: Tensor) -> Tensor:
        """Apply the transpose to columns [B, m, K]; returns [B, n, K]. Symmetric maps need no method of their own."""
        if not self.symmetric:
            raise NotImplementedError(f"{type(self).__name__} has no product with its transpose")
        return self._matmat(columns)

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        """Apply A^T A to columns [B, n, K]; returns [B, n, K]. An operator may know a cheaper way."""
        return self._rmatmat(self._matmat(columns))

    def _gram_rows(self, columns: Tensor) -> Tensor:
        """As `gram_rows`. An operator may know a cheaper rotation."""
        return self._matmat(columns).mT

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
    def gram_matmat(self, columns: Tensor) -> Tensor:
        """A^T A on K vectors per sample: [B, n, K] to [B, n, K].

        Raises:
            ValueError: the columns' shape isn't [B, n, K].
        """
        self._check(columns, self.shape[1])
        return self._gram_matmat(columns)

    @final
    def gram_rows(self, columns: Tensor) -> Tensor:
        """A on K vectors per sample up to a rotation: [B, n, K] to [B, K, r], whose rows have A v's inner products.

        Raises:
            ValueError: the columns' shape isn't [B, n, K].
        """
        self._check(columns, self.shape[1])
        return self._gram_rows(columns)

    @final
    def require_psd(self) -> None:
        """What every solver here asks of its operator.

        Raises:
            ValueError: the maps aren't known to be symmetric and positive semidefinite.
        """
        if not self.psd:
            raise ValueError(f"expected a symmetric positive semidefinite operator, found {type(self).__name__}")

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
    """Explicit matrices [B, m, n] as an operator; ``psd`` is the caller's word."""

    def __init__(self, matrices: Tensor, *, psd: bool = False) -> None:
        super().__init__(matrices.shape[0], (matrices.shape[1], matrices.shape[2]), matrices.dtype, matrices.device)
        self.matrices = matrices
        self._psd = psd

    @property
    @override
    def psd(self) -> bool:
        return self._psd

    @override
    def _matmat(self, columns: Tensor) -> Tensor:
        return self.matrices @ columns

    @override
    def _rmatmat(self, columns: Tensor) -> Tensor:
        return self.matrices.mT @ columns

    @override
    def select(self, indices: list[int]) -> MatrixOperator:
        return MatrixOperator(self.matrices[indices], psd=self._psd)


@final
class GramOperator(LinearOperator):
    """H = J^T J of an operator J, [B, n, n]."""

    def __init__(self, jacobian: LinearOperator) -> None:
        n = jacobian.shape[1]
        super().__init__(jacobian.num_samples, (n, n), jacobian.dtype, jacobian.device)
        self.jacobian = jacobian

    @property
    @override
    def psd(self) -> bool:
        return True

    @property
    @override
    def factor(self) -> LinearOperator:
        return self.jacobian

    @property
    @override
    def rounding(self) -> list[float]:
        return self.jacobian.rounding

    @override
    def _matmat(self, columns: Tensor) -> Tensor:
        product = self.jacobian.gram_matmat(columns)
        tell_products(self.jacobian, columns.shape[2])
        return product

    @override
    def select(self, indices: list[int]) -> GramOperator:
        return GramOperator(self.jacobian.select(indices))


Watch = Callable[[LinearOperator, float], None]
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watching_products(watch: Watch) -> Iterator[None]:
    """Calls ``watch(J, K)`` whenever each of J's maps was used for K products with J^T J; one with J alone is half."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def tell_products(jacobian: LinearOperator, columns: float) -> None:
    """Tell whoever watches of products that were made."""
    watch = _watch.get()
    if watch is not None:
        watch(jacobian, columns)


def identity_columns(operator: LinearOperator) -> Tensor:
    """The n unit vectors for every sample as a view, [B, n, n]."""
    n = operator.shape[1]
    return torch.eye(n, dtype=operator.dtype, device=operator.device).expand(operator.num_samples, n, n)


@final
class DowndatedOperator(LinearOperator):
    """A - v v^T for a symmetric operator A and vectors v [B, n], short enough that it stays positive semidefinite."""

    def __init__(self, operator: LinearOperator, vector: Tensor) -> None:
        super().__init__(operator.num_samples, operator.shape, operator.dtype, operator.device)
        self.operator = operator
        self.vector = vector

    @property
    @override
    def psd(self) -> bool:
        return self.operator.psd

    @property
    @override
    def rounding(self) -> list[float]:
        return self.operator.rounding

    @override
    def _matmat(self, columns: Tensor) -> Tensor:
        overlap = torch.einsum("bn,bnk->bk", self.vector, columns)
        return self.operator.matmat(columns) - self.vector[:, :, None] * overlap[:, None, :]

    @override
    def select(self, indices: list[int]) -> DowndatedOperator:
        return DowndatedOperator(self.operator.select(indices), self.vector[indices])


@final
class RepeatedOperator(LinearOperator):
    """Some of an operator's maps, each as often as it is listed: products of equal ones are made at once, as columns.

    Args:
        operator: symmetric.
        indices: of the maps, in the order wanted.
    """

    def __init__(self, operator: LinearOperator, indices: list[int]) -> None:
        super().__init__(len(indices), operator.shape, operator.dtype, operator.device)
        self.operator, self.indices = operator, indices
        self._parts: dict[int, LinearOperator] = {}

    @property
    @override
    def psd(self) -> bool:
        return self.operator.psd

    @property
    @override
    def symmetric(self) -> bool:
        return self.operator.symmetric

    @property
    @override
    def rounding(self) -> list[float]:
        every = self.operator.rounding
        return [every[index] for index in self.indices]

    @override
    def _matmat(self, columns: Tensor) -> Tensor:
        product = torch.empty_like(columns)
        for index in dict.fromkeys(self.indices):
            rows = [row for row, other in enumerate(self.indices) if other == index]
            if index not in self._parts:
                self._parts[index] = self.operator.select([index])
            made = self._parts[index].matmat(torch.cat([columns[row] for row in rows], dim=1).unsqueeze(0))[0]
            product[rows] = torch.stack(made.chunk(len(rows), dim=1))
        return product

    @override
    def select(self, indices: list[int]) -> RepeatedOperator:
        part = RepeatedOperator(self.operator, [self.indices[index] for index in indices])
        part._parts = self._parts
        return part
