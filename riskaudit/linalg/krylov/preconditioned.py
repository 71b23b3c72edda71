"""Solves with K + shift, preconditioned by a Krylov space of K that is there already: lower and upper ends.

With Ritz pairs t_i, y_i of one space (orthonormal rows Y, [k, n]) and

    P = sum_i (t_i + shift) y_i y_i^T + rest (1 - Y^T Y),

A = K + shift becomes P^(-1/2) A P^(-1/2), whose spectrum lacks what the space has resolved (cf. Frangella, Tropp and
Udell, "Randomized Nystrom preconditioning", SIAM J. Matrix Anal. Appl. 44, 2023). A Lanczos iteration on it that starts
at P^(-1/2) b brackets b^T A^-1 b, once a lower end of its spectrum is known.

[derived] That end. In the basis Y, q (the space's next vector) and the rest, K = [T, beta e_k, 0; beta e_k^T, ...],
with K + s >= 0 for s as large as rounding. Hence with t' = t + s the block of A - mu P outside Y is at least
(shift - 2 s - mu rest) 1 + beta^2 sum_i v_i^2 (1 / t'_i - 1 / (t'_i + shift - 2 s - mu (t_i + shift))) q q^T, v_i the
last entry of the i-th eigenvector of T: mu is such that neither is negative, nor the block inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg.krylov.lanczos import KrylovSpace
from riskaudit.linalg.krylov.tridiagonal import Array, Tridiagonal
from riskaudit.linalg.operators import LinearOperator

# The eigenvalue that the rest of the space is given is this quantile of the Ritz values. Measured on a small
# convolutional network: 0.1 to 0.5 take the same number of products within a tenth, the smallest half as many again.
REST_QUANTILE = 0.25
# Halvings of the interval that the least eigenvalue is sought in.
HALVINGS = 60


@final
class RitzPreconditioner:
    """P at B samples.

    Args:
        spaces: of K, one per sample; one without a product leaves P a multiple of 1.
        shifts: above 0, [B].
        scales: what products with K are rounded relative to, [B]; infinite where that is unknown.
        like: of the dtype and device of vectors, [B, n].

    Attributes:
        least: lower ends of the spectrum of P^(-1/2) (K + shift) P^(-1/2), [B]; 0 where none is known.
        least_if_double: the same if products had been made in double precision: what more of them can still change.
        scales: what products with that are rounded relative to, [B].
        largest: eigenvalues of P, [B].
    """

    def __init__(
        self, spaces: Sequence[KrylovSpace], shifts: Sequence[float], scales: Sequence[float], like: Tensor
    ) -> None:
        width = max((space.tridiagonal.num_products for space in spaces), default=0)
        self._vectors = like.new_zeros(len(spaces), width, like.shape[1])
        self._values = torch.ones(len(spaces), width, dtype=torch.float64)
        self._rest = torch.ones(len(spaces), dtype=torch.float64)
        self.least: list[float] = []
        self.least_if_double: list[float] = []
        self.scales: list[float] = []
        self.largest: list[float] = []
        for row, (space, shift, scale) in enumerate(zip(spaces, shifts, scales, strict=True)):
            tridiagonal = space.tridiagonal
            values = np.maximum(tridiagonal.ritz().values, 0.0) + shift
            rest = float(np.quantile(values, REST_QUANTILE)) if len(values) else shift
            plain = _rounding(tridiagonal, scale)
            # Where rounding hides what small eigenvalues of P gain, there are none below that of the rest.
            for floor in (0.0, rest):
                preconditioned = np.maximum(values, floor)
                least = least_eigenvalue(tridiagonal, shift, rest, scale, floor)
                rounded = scale / min([rest, *preconditioned.tolist()])
                if least > 4 * _rounding(tridiagonal, rounded):
                    break
            values = preconditioned
            if not least > 4 * _rounding(tridiagonal, rounded) and shift > 4 * plain:
                # It would hide more than the preconditioner gains.
                values, rest, rounded, least = values[:0], 1.0, scale, shift - plain
            self.least.append(least)
            exact = tridiagonal.as_if_double()
            self.least_if_double.append(
                least_eigenvalue(exact, shift, rest, scale, floor) if len(values) else shift - _rounding(exact, scale)
            )
            self.scales.append(rounded)
            self.largest.append(max(rest, float(values.max(initial=0.0))))
            self._rest[row] = rest
            if len(values):
                self._values[row, : len(values)] = torch.from_numpy(values)
                self._vectors[row, : len(values)] = space.ritz_vectors(list(range(len(values))))
        self._values, self._rest = self._values.to(like.device), self._rest.to(like.device)

    def power(self, columns: Tensor, exponent: float, rows: Sequence[int] | None = None) -> Tensor:
        """P^exponent on columns [B, n, K], or on those of some samples, which ``rows`` are."""
        chosen = slice(None) if rows is None else list(rows)
        vectors, values, rest = self._vectors[chosen], self._values[chosen], self._rest[chosen]
        along = vectors @ columns
        factors = (values**exponent - rest[:, None] ** exponent).to(columns)
        powered: Tensor = (rest**exponent).to(columns)[:, None, None] * columns + vectors.mT @ (
            factors[:, :, None] * along
        )
        return powered


@final
class PreconditionedOperator(LinearOperator):
    """P^(-1/2) (K + shift) P^(-1/2), [B, n, n].

    Args:
        operator: K.
        preconditioner: P, of all samples that there were at first.
        shifts: [B], likewise.
        rows: positions of the operator's samples among those.
    """

    def __init__(
        self, operator: LinearOperator, preconditioner: RitzPreconditioner, shifts: Sequence[float], rows: list[int]
    ) -> None:
        super().__init__(operator.num_samples, operator.shape, operator.dtype, operator.device)
        self._operator, self._preconditioner, self._all_shifts, self._rows = operator, preconditioner, shifts, rows
        shift = [shifts[row] for row in rows]
        self._shift = torch.tensor(shift, dtype=torch.float64, device=operator.device)[:, None, None]

    @property
    @override
    def psd(self) -> bool:
        return self._operator.psd

    @property
    @override
    def rounding(self) -> list[float]:
        return self._operator.rounding

    @override
    def _matmat(self, columns: Tensor) -> Tensor:
        rooted = self._preconditioner.power(columns, -0.5, self._rows)
        product = self._operator.matmat(rooted) + self._shift.to(rooted) * rooted
        return self._preconditioner.power(product, -0.5, self._rows)

    @override
    def select(self, indices: list[int]) -> LinearOperator:
        rows = [self._rows[index] for index in indices]
        return PreconditionedOperator(self._operator.select(indices), self._preconditioner, self._all_shifts, rows)


def least_eigenvalue(
    tridiagonal: Tridiagonal, shift: float, rest: float, scale: float = 0.0, floor: float = 0.0
) -> float:
    """A lower end of the spectrum of P^(-1/2) (K + shift) P^(-1/2); 0 where none is known.

    Args:
        tridiagonal: T of K.
        shift: above 0.
        rest: P's eigenvalue outside the space.
        scale: what products with K are rounded relative to, where it exceeds all Ritz values.
        floor: below which P has no eigenvalue inside the space.
    """
    slack = _rounding(tridiagonal, scale)
    spare = shift - 2 * slack
    if not spare > 0:
        return 0.0
    values, _, residuals = tridiagonal.ritz()
    shifted, preconditioned = values + slack, np.maximum(np.maximum(values, 0.0) + shift, floor)
    if len(values) and not float(shifted.min()) > 0:
        return 0.0
    # beta v_i.
    squares = residuals**2

    def holds(least: float) -> bool:
        outside = spare - least * rest
        inside = shifted + spare - least * preconditioned
        if outside < 0 or inside.min(initial=np.inf) <= 0:
            return False
        return bool(outside + float(np.sum(squares * (1 / shifted - 1 / inside))) >= 0)

    low, high = 0.0, spare / rest
    if holds(high):
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def least_solution_norm(tridiagonal: Tridiagonal, along: Array, slack: float, gram: Array | None = None) -> float:
    """A lower end of ||A^-1 b|| from a space S with A S = S' T, whatever b is: max over y of b^T S y / ||A S y||.

    Args:
        tridiagonal: T, extended by beta_k in a last row.
        along: S^T b, [k].
        slack: by how much rounding may have moved the product with a unit vector of S.
        gram: S'^T S', [k + 1, k + 1]; None where it is 1.
    """
    count = len(along)
    if not count or not np.isfinite(along).all() or not along.any():
        return 0.0
    extended = np.zeros((count + 1, count))
    extended[np.arange(count), np.arange(count)] = tridiagonal.diagonal
    extended[np.arange(1, count + 1), np.arange(count)] = tridiagonal.off_diagonal
    extended[np.arange(count - 1), np.arange(1, count)] = tridiagonal.off_diagonal[:-1]
    lengths = extended.T @ extended if gram is None else extended.T @ gram @ extended
    # A direction that is all rounding makes the quotient smaller, so it has no part in y.
    ridge = max(slack**2, np.finfo(np.float64).eps * float(np.trace(lengths)))
    chosen = np.linalg.solve(lengths + ridge * np.eye(count), along)
    length = math.sqrt(max(0.0, float(chosen @ lengths @ chosen))) + slack * float(np.linalg.norm(chosen))
    return max(0.0, float(along @ chosen) / length) if length > 0 else 0.0


def _rounding(tridiagonal: Tridiagonal, scale: float) -> float:
    return tridiagonal.slack(scale) if np.isfinite(scale) else np.inf
