"""The tridiagonal matrix T of one sample's Lanczos iteration: all that certificates and quadrature need."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

Array = NDArray[np.float64]

# A space whose next beta is below this many roundings of a product is invariant.
EXHAUSTED_ROUNDINGS = 10
# Roundings of a product, times sqrt(n) l_1, by which H may differ from the operator that T belongs to.
SLACK_ROUNDINGS = 4


class RitzPairs(NamedTuple):
    """Ritz values ascending [k], their vectors as columns in the basis [k, k], and residuals [k]; float64."""

    values: Array
    vectors: Array
    residuals: Array


@dataclass(frozen=True, eq=False)
class Tridiagonal:
    """T of one sample after k products from a start vector b, with what is needed to judge it.

    Attributes:
        diagonal: alpha_1 to alpha_k, [k], float64.
        off_diagonal: beta_1 to beta_k, [k], float64; beta_k = 0 where the space is invariant.
        dimension: n.
        start_norm: ||b||. A zero start vector has T = [0], and an invariant space.
        rounding: unit roundoff of the operator's products.
    """

    diagonal: Array
    off_diagonal: Array
    dimension: int
    start_norm: float
    rounding: float

    @property
    def num_products(self) -> int:
        """Products made, k; 0 for a zero start vector."""
        return len(self.diagonal) if self.start_norm > 0 else 0

    @property
    def exhausted(self) -> bool:
        """Whether the space is invariant: the Ritz values are then eigenvalues."""
        return len(self.off_diagonal) > 0 and self.off_diagonal[-1] == 0

    @property
    def largest(self) -> float:
        """The largest Ritz value, 0 where none is positive."""
        return max(0.0, float(self.ritz().values[-1])) if len(self.diagonal) else 0.0

    def slack(self, largest: float = 0.0) -> float:
        """Norm of the rounding: T is exactly that of an operator at most this far from H.

        Args:
            largest: an eigenvalue of H known beforehand, where it may exceed T's own.
        """
        # An invariant space dropped a beta that was at most so large.
        roundings = SLACK_ROUNDINGS + (EXHAUSTED_ROUNDINGS if self.exhausted else 0)
        return roundings * self.rounding * math.sqrt(self.dimension) * max(self.largest, largest)

    def leading(self, num_products: int) -> Tridiagonal:
        """T after the first so many of the products."""
        return replace(self, diagonal=self.diagonal[:num_products], off_diagonal=self.off_diagonal[:num_products])

    def as_if_double(self) -> Tridiagonal:
        """T as if products had been made in double precision: what more of them can still change."""
        return self._as_if_double

    def as_if_exhausted(self) -> Tridiagonal:
        """T as if its space were invariant, so that both rules agree: what more products leave open."""
        return self._as_if_exhausted

    # Kept, since a sample's intervals are looked at after every few products, each time with all its earlier probes.
    @cached_property
    def _as_if_double(self) -> Tridiagonal:
        return self._with_same_ritz(replace(self, rounding=float(np.finfo(np.float64).eps)))

    @cached_property
    def _as_if_exhausted(self) -> Tridiagonal:
        return self._with_same_ritz(replace(self, off_diagonal=np.append(self.off_diagonal[:-1], 0.0)))

    def _with_same_ritz(self, other: Tridiagonal) -> Tridiagonal:
        if len(self.off_diagonal):
            # Those of an invariant space have no residuals.
            ritz = self._ritz._replace(residuals=np.abs(other.off_diagonal[-1] * self._ritz.vectors[-1]))
            other.__dict__["_ritz"] = ritz
        return other

    def ritz(self) -> RitzPairs:
        """Ritz values and residuals of H in the present space."""
        return self._ritz

    def radau(self, node: float) -> tuple[Array, Array]:
        """Nodes and weights [k + 1] of the Gauss-Radau rule with a prescribed node left of all Ritz values.

        Golub and Meurant, section 6.2: T is extended by beta_k and a last diagonal entry
        node + beta_k^2 e_k^T (T - node)^-1 e_k.
        """
        if node not in self._radau_rules:
            self._radau_rules[node] = self._radau(node)
        return self._radau_rules[node]

    @cached_property
    def _radau_rules(self) -> dict[float, tuple[Array, Array]]:
        return {}

    def _radau(self, node: float) -> tuple[Array, Array]:
        last = node
        if len(self.diagonal):
            values, _, residuals = self.ritz()
            # Not left of them only if the caller's lower end is wrong.
            node = min(node, float(values[0]) - self.rounding * abs(float(values[-1])))
            last = node + float(np.sum(residuals**2 / (values - node)))
        nodes, vectors = eigh_tridiagonal(np.append(self.diagonal, last), self.off_diagonal)
        nodes[0] = node
        return nodes, self.start_norm**2 * vectors[0] ** 2

    @cached_property
    def _ritz(self) -> RitzPairs:
        if not len(self.diagonal):
            return RitzPairs(np.zeros(0), np.zeros((0, 0)), np.zeros(0))
        values, vectors = eigh_tridiagonal(self.diagonal, self.off_diagonal[:-1])
        return RitzPairs(values, vectors, np.abs(self.off_diagonal[-1] * vectors[-1]))
