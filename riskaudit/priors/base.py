"""The prior interface: N(mu, C) over one flattened input, given its class where the prior knows classes.

C = L L^T with a symmetric root L, so that everything that holds for white inputs holds for w with
x = mu + L w and the Jacobian J L (docs/theory.md, section 2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from riskaudit.results import PriorInfo

Apply = Callable[[Tensor], Tensor]


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
        isotropic_std: tau where L = tau I for every sample, else None.
        leading: of one sample, by its position, at most so many of C's largest eigenvalues, descending [m + 1], and
            orthonormal eigenvectors of all but the last [m, d]; None where C has none that stand out.
    """

    mean: Tensor
    root: Apply
    inverse_root: Apply
    variance: Tensor
    largest: Tensor
    select: Callable[[list[int]], BoundPrior]
    isotropic_std: float | None = None
    leading: Callable[[int, int], tuple[list[float], Tensor]] | None = None


class Prior(ABC):
    """What an attacker knows of the input beforehand."""

    kind: ClassVar[str]

    @abstractmethod
    def bind(self, targets: Tensor, like: Tensor) -> BoundPrior:
        """The prior at samples with these targets [B, ...], in dtype and device of ``like`` [B, d].

        A class that the prior doesn't know gets what the prior says of all classes together.
        """

    @abstractmethod
    def info(self) -> PriorInfo:
        """What audit.json says of it."""
