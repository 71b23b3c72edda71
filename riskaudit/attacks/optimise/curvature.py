"""What a Gauss-Newton search knows of K = L H L from where it has been: preconditioners of its linear systems.

Where the noise is small against the release's curvature, eigenvalues of K + shift lie many orders apart, and conjugate
gradient takes as many products as there are distinct ones above the shift. From step to step K changes little, though:
with the Cholesky factor of K at an earlier point, and the shift of this step, a few dozen products are enough.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from riskaudit.linalg.solvers.dense import dense_matrices
from riskaudit.linalg.solvers.truncated_cg import Preconditioner
from riskaudit.priors import WhitenedOperator

# A dense K costs about as much as this many products per column: J on unit vectors, many at once, and their inner
# products (measured for a LeNet's mean of 4 and its local training alike).
PRODUCTS_PER_COLUMN = 0.25
# Matrices, their factors and what making one takes are no more than this many bytes together.
MOST_BYTES = 7 * 2**29
# A factor made with another shift serves as long as the shifts differ by less than this.
SIMILAR_SHIFTS = 4.0
# Added to the diagonal, relative to its largest entry: rounding may have made the smallest eigenvalues negative.
ROUNDING = 1e-12


def most_matrices(dimension: int) -> int:
    """Samples of so many coordinates whose K is kept at once."""
    return MOST_BYTES // (3 * 8 * dimension**2)


@final
class EarlierCurvature:
    """Dense K of the samples of a search at points where it was before; none until products have cost as much.

    Args:
        num_samples: of the whole search.
        dimension: of a point.
    """

    def __init__(self, num_samples: int, dimension: int) -> None:
        self._price = PRODUCTS_PER_COLUMN * dimension
        self._most = most_matrices(dimension)
        self._spent = torch.zeros(num_samples, dtype=torch.long)
        self._matrices: dict[int, Tensor] = {}
        self._factors: dict[int, tuple[float, Tensor]] = {}

    def pay(self, rows: list[int], products: Tensor) -> None:
        """Note how many products samples took in a step, [B]."""
        self._spent[rows] += products.cpu()

    def refresh(self, rows: list[int], operator: WhitenedOperator) -> None:
        """Make K, where it is due, of the samples in ``rows`` by their operator at this point."""
        due = [position for position, row in enumerate(rows) if self._spent[row] >= self._price]
        for row in self._matrices.keys() - set(rows):
            self._forget(row)
        for position in due:
            row = rows[position]
            if row not in self._matrices and len(self._matrices) >= self._most:
                continue
            self._forget(row)
            hessian = next(dense_matrices(operator.operator.select([position])))
            self._matrices[row] = operator.matrix(hessian, position)
            self._spent[row] = 0

    def preconditioner(self, rows: list[int], shift: Tensor) -> Preconditioner | None:
        """(K + shift)^-1 with the earlier K of each sample, shift [B]; None where none is there."""
        shifts = zip(rows, shift.tolist(), strict=True)
        every = [self._factor(row, each) if row in self._matrices else None for row, each in shifts]
        factors = {position: factor for position, factor in enumerate(every) if factor is not None}
        if not factors:
            return None

        def precondition(remainder: Tensor) -> Tensor:
            result = remainder.clone()
            for position, factor in factors.items():
                solved = torch.cholesky_solve(remainder[position].double()[:, None], factor)
                result[position] = solved[:, 0].to(remainder)
            return result

        return precondition

    def _factor(self, row: int, shift: float) -> Tensor | None:
        """Cholesky factor of the sample's K with a shift near this one; None where there is no telling it from 0."""
        if row in self._factors:
            before, factor = self._factors[row]
            if before <= SIMILAR_SHIFTS * shift and shift <= SIMILAR_SHIFTS * before:
                return factor
            del self._factors[row]
        matrix = self._matrices[row].clone()
        diagonal = matrix.diagonal()
        diagonal += shift + ROUNDING * diagonal.max()
        fresh: Tensor
        fresh, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed) or not bool(torch.isfinite(fresh).all()):
            return None
        self._factors[row] = shift, fresh
        return fresh

    def _forget(self, row: int) -> None:
        self._matrices.pop(row, None)
        self._factors.pop(row, None)
