"""The prior interface: N(mu, C) over one flattened input, given its class where the prior knows classes.

C = L L^T with a symmetric root L, so that everything that holds for white inputs holds for w with
x = mu + L w and the Jacobian J L (docs/theory.md, section 2).

K = L H L is the sensitivity of a release in these coordinates: everything that holds for a white prior holds for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.linalg import LinearOperator
from riskaudit.results import PriorInfo

Apply = Callable[[Tensor], Tensor]
# Vectors of one sample to which a root is applied together.
ROWS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class BoundPrior:
    """A prior at B samples, whose classes decide which Gaussian each has.

    Attributes:
        mean: mu, [B, d].
        root: v [B, d] to L v [B, d].
        inverse_root: v [B, d] to L^-1 v [B, d].
        variance: tr C / d of every sample, [B], float64.
        largest: the largest eigenvalue of C of every sample, [B], float64.
        select: the prior at some of the samples, in the order given; one may occur several times.
        isotropic: a fact about L that narrows intervals: it is known to be a multiple of the identity, at every sample.
        leading: of one sample, by its position, at most so many of C's largest eigenvalues, descending [m + 1], and
            orthonormal eigenvectors of all but the last [m, d]; None where C has none that stand out.
    """

    mean: Tensor
    root: Apply
    inverse_root: Apply
    variance: Tensor
    largest: Tensor
    select: Callable[[list[int]], BoundPrior]
    isotropic: bool = False
    leading: Callable[[int, int], tuple[list[float], Tensor]] | None = None

    @property
    def std(self) -> Tensor:
        """The error of a guess at the mean, per input coordinate: sqrt(tr C / d), [B], float64."""
        return self.variance.sqrt()

    def root_of_rows(self, index: int, rows: Tensor) -> Tensor:
        """L of one sample on many vectors, the rows [m, d]."""
        return self.select([index] * len(rows)).root(rows)

    def alike_everywhere(self) -> BoundPrior:
        """N(mu, tr C / d) at the same samples: one scale for all coordinates, none of which is likelier to vary."""
        std = self.std[:, None]
        return BoundPrior(
            mean=self.mean,
            root=lambda vector: vector * std.to(vector),
            inverse_root=lambda vector: vector / std.to(vector),
            variance=self.variance,
            largest=self.variance,
            select=lambda indices: self.select(indices).alike_everywhere(),
            isotropic=True,
        )

    def in_its_units(self) -> BoundPrior:
        """The same prior in units of its own std: of covariance C d / tr C. An isotropic one has L = 1 then."""
        if self.isotropic:
            return white_prior(self.mean)
        std, root, inverse_root, leading = self.std[:, None], self.root, self.inverse_root, self.leading
        variance = self.variance.tolist()

        def leading_in_units(index: int, count: int) -> tuple[list[float], Tensor]:
            assert leading is not None
            values, vectors = leading(index, count)
            return [value / variance[index] for value in values], vectors

        return BoundPrior(
            mean=self.mean,
            root=lambda vector: root(vector) / std.to(vector),
            inverse_root=lambda vector: inverse_root(vector) * std.to(vector),
            variance=self.variance / self.variance,
            largest=self.largest / self.variance,
            select=lambda indices: self.select(indices).in_its_units(),
            leading=None if leading is None else leading_in_units,
        )


def white_prior(mean: Tensor) -> BoundPrior:
    """N(mean, 1) for mean [B, d]: L = 1."""
    ones = mean.new_ones(len(mean), dtype=torch.float64)
    return BoundPrior(mean, _same, _same, ones, ones, lambda indices: white_prior(mean[indices]), isotropic=True)


def _same(vector: Tensor) -> Tensor:
    return vector


class Prior(ABC):
    """What an attacker knows of the input beforehand."""

    kind: ClassVar[str]

    @abstractmethod
    def bind(self, targets: Tensor, like: Tensor, lengths: Tensor | None = None) -> BoundPrior:
        """The prior at samples with these targets [B, ...], in dtype and device of ``like`` [B, d].

        ``lengths`` [B] are the numbers of tokens of texts that were padded to one length; only a prior of texts looks
        at them. A class that the prior doesn't know gets what the prior says of all classes together.
        """

    @abstractmethod
    def info(self) -> PriorInfo:
        """What audit.json says of it."""


@final
class WhitenedOperator(LinearOperator):
    """L H L for a symmetric operator H [B, d, d] and the prior's symmetric root L at the same samples."""

    def __init__(self, operator: LinearOperator, prior: BoundPrior) -> None:
        super().__init__(operator.num_samples, operator.shape, operator.dtype, operator.device)
        self.operator = operator
        self.prior = prior

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
        return _root_of_columns(self.prior, self.operator.matmat(_root_of_columns(self.prior, columns)))

    def matrix(self, hessian: Tensor, index: int) -> Tensor:
        """L H L of one sample from its H [d, d], both symmetric."""
        parts = [self.prior.root_of_rows(index, rows) for rows in torch.split(hessian, ROWS_AT_ONCE)]
        half = torch.cat(parts).mT
        return torch.cat([self.prior.root_of_rows(index, rows) for rows in torch.split(half, ROWS_AT_ONCE)])

    @override
    def select(self, indices: list[int]) -> WhitenedOperator:
        return WhitenedOperator(self.operator.select(indices), self.prior.select(indices))


def _root_of_columns(prior: BoundPrior, columns: Tensor) -> Tensor:
    """L on columns [B, d, K]."""
    if columns.shape[-1] == 1:
        return prior.root(columns[..., 0]).unsqueeze(-1)
    return torch.stack([prior.root_of_rows(index, part.mT).mT for index, part in enumerate(columns)])


def in_white_coordinates(operator: LinearOperator, prior: BoundPrior) -> LinearOperator:
    """L H L for a prior in its own units (`BoundPrior.in_its_units`): H itself where that is isotropic, as L = 1."""
    return operator if prior.isotropic else WhitenedOperator(operator, prior)
