"""What has left about one sample, over all rounds: Fisher information adds up.

After uploads t = 1..n with noise std s_t on sample i's own release, F = sum_t J_t^T J_t / s_t^2, and the share of the
input revealed by all of them together is sum_j l_j(F) / (l_j(F) + 1/tau^2) / d (docs/theory.md, section 2, with F in
the place of H / sigma^2). F itself, d x d, isn't kept. Per sample there are

- Q, k orthonormal directions [k, d] fixed at its first upload, and C = sum_t Q J_t^T J_t Q^T / s_t^2, exact,
- T, an upper end of tr F,
- D, the sum of the upper ends of every round's effective dimension.

[derived] f(x) = x / (x + 1/tau^2) is concave and f(0) = 0, so tr f of a block-diagonal part of F is at least
tr f(F) (its eigenvalues are majorised by F's), hence tr f(F) <= tr f(C) + (d - k) f((T - tr C) / (d - k)). And
tr f(A + B) <= tr f(A) + tr f(B) for positive semidefinite A and B (Rotfel'd, 1969), hence tr f(F) <= D. The smaller
end counts. Both hold with the confidence of the rounds' own ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# Sketches come from products in float32.
ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class Account:
    """What has left about one sample so far; see the module.

    Attributes:
        rounds: uploads that it was part of.
        dimension: d.
        tau: the prior's std, data units.
        summed: D.
        trace: T, 1 / data units squared.
        directions: Q, [k, d], orthonormal rows.
        core: C, [k, k], 1 / data units squared.
    """

    rounds: int
    dimension: int
    tau: float
    summed: float
    trace: float
    directions: Array
    core: Array

    @classmethod
    def empty(cls, dimension: int, tau: float, directions: Array) -> Account:
        """An account before the first upload, with ``directions`` [k, d] rounded to float32 as the file has them."""
        count = len(directions)
        rounded = directions.astype(np.float32).astype(np.float64)
        return cls(0, dimension, tau, 0.0, 0.0, rounded, np.zeros((count, count)))

    def after(self, effective_dimension: float, trace: float, core: Array) -> Account:
        """The account with one more upload.

        Args:
            effective_dimension: upper end of this upload's own.
            trace: upper end of tr J^T J / s^2.
            core: Q J^T J Q^T / s^2 in the sample's own directions, [k, k].
        """
        return replace(
            self,
            rounds=self.rounds + 1,
            summed=self.summed + effective_dimension,
            # The trace of a part is a lower end of the whole's, so that an upper end below it is only rounding.
            trace=self.trace + max(trace, float(np.trace(core))),
            core=self.core + core,
        )

    @property
    def revealed(self) -> float:
        """Upper end of the share of the input that all uploads together reveal."""
        eps, count = 1 / self.tau**2, len(self.core)
        values = np.maximum(np.linalg.eigvalsh(self.core), 0.0) if count else np.zeros(0)
        most = float(np.sum(values / (values + eps)))
        remaining = self.dimension - count
        if remaining:
            rest = max(0.0, self.trace - float(values.sum()))
            most += remaining * (rest / (rest + remaining * eps) if math.isfinite(rest) else 1.0)
        return min(1.0, min(most, self.summed) / self.dimension)

    @property
    def rmse(self) -> float:
        """Lower end of the posterior error after all uploads, data units per input coordinate."""
        return self.tau * math.sqrt(max(0.0, 1 - self.revealed))


def flaws_of(account: Account) -> Iterator[str]:
    """What no sequence of uploads can have left, one phrase each."""
    scalars = math.isfinite(account.tau) and math.isfinite(account.summed)
    if not (scalars and np.isfinite(account.core).all() and np.isfinite(account.directions).all()):
        yield "it holds a number that isn't finite"
        return
    if account.rounds < 1 or account.tau <= 0 or account.summed < 0 or not account.trace >= 0:
        yield "a count, the prior or a sum is out of range"
    gram = account.directions @ account.directions.T
    if float(np.abs(gram - np.eye(len(gram))).max(initial=0.0)) > ROUNDING:
        yield "its directions aren't orthonormal"
    inside = float(np.trace(account.core))
    if len(account.core) and not _is_semidefinite(account.core, inside):
        yield "its sketch isn't positive semidefinite"
    if account.trace < inside * (1 - ROUNDING):
        yield "its trace is below that of its sketch"


def shrinks(before: Account, after: Account) -> bool:
    """Whether ``after`` can't be ``before`` with one more upload: sums never fall, and directions stay."""
    same = (before.dimension, before.tau) == (after.dimension, after.tau)
    if not same or not np.array_equal(before.directions, after.directions) or after.rounds != before.rounds + 1:
        return True
    more = after.core - before.core
    grown = after.summed >= before.summed and after.trace >= before.trace
    return not grown or (len(more) > 0 and not _is_semidefinite(more, float(np.trace(after.core))))


def _is_semidefinite(matrix: Array, scale: float) -> bool:
    asymmetry = float(np.abs(matrix - matrix.T).max(initial=0.0))
    return max(asymmetry, -float(np.linalg.eigvalsh(matrix)[0])) <= ROUNDING * abs(scale)
