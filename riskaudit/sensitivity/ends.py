"""Both ends of H's spectrum at B samples: what one Lanczos iteration from a random start certifies of them.

Probabilities of failure are divided over the events of a sample (docs/theory.md, section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from riskaudit.linalg import Finished, KrylovSpace, Lanczos, LinearOperator, Solution, lower_end
from riskaudit.linalg.operators import DowndatedOperator
from riskaudit.sensitivity.plan import Clock, Plan
from riskaudit.sensitivity.probing import DEFAULT_PRECISION

# Ends that hold with probability only: the effective dimension's, which the headline is read off, have this part of a
# failure; l_1 above, l_d below, the same of H - v v^T above, traces of three more functions, and what the drawn noise
# comes to share the rest.
DIMENSION_SHARE, OTHER_EVENTS = 0.6, 7
# An end of the spectrum comes so near with a product or two more that this is always worth them.
END_PRECISION = 0.05


@final
class SpectrumEnds:
    """l_1 and l_d of H, where not all eigenvalues are known.

    Args:
        hessian: H, [B, d, d].
        plan: limits; its ``failure`` is divided over all ends that may fail.
        sure_least: gives sure lower ends of l_d, [B].
        draw: draw(i) for i = 0, 1, ... gives standard normal vectors [B, d], independent of each other.
        clock: the time there is.
        probes: when the first iteration may end as a probe of a trace, where it is to be one too; None where not.

    Attributes:
        failure: probability, per sample and event, that an end is wrong.
        dimension_failure: the same of the effective dimension's ends.
        precision: relative width at which an interval is narrow enough.
        matvecs: products so far, over samples.
    """

    def __init__(
        self,
        hessian: LinearOperator,
        plan: Plan,
        sure_least: Callable[[], Tensor],
        draw: Callable[[int], Tensor],
        clock: Clock,
        probes: Finished | None = None,
    ) -> None:
        self.hessian, self.plan, self.clock = hessian, plan, clock
        self.failure = (1 - DIMENSION_SHARE) * plan.failure / OTHER_EVENTS
        self.dimension_failure = dimension_failure(plan)
        self.precision = DEFAULT_PRECISION if plan.precision is None else plan.precision
        self.matvecs = 0
        self._sure_least, self._draw = sure_least, draw
        # Where time is limited l_1 alone comes first.
        self._probes = None if clock.limited else probes
        self._drawn: dict[int, Tensor] = {}

    @cached_property
    def spaces(self) -> list[KrylovSpace]:
        """The iteration from a random start that l_1 is read off."""
        return self._counted(self._lanczos.run(self.hessian, self._draw(0), self._probes))

    @property
    def are_probes(self) -> bool:
        """Whether `spaces` are deep enough to be probes of a trace."""
        return self._probes is not None

    @cached_property
    def largest(self) -> Solution:
        """l_1 with its certified upper end."""
        return self._lanczos.read(self.spaces)

    @cached_property
    def largest_high(self) -> list[float]:
        """Certified upper ends of l_1."""
        assert self.largest.high is not None
        return list(self.largest.high.tolist())

    @cached_property
    def least(self) -> list[float]:
        """Certified lower ends of l_d: of the layers, or of the iteration."""
        return [
            max(sure, lower_end(space.tridiagonal, self.failure))
            for sure, space in zip(self._sure_least().tolist(), self.spaces, strict=True)
        ]

    @property
    def _lanczos(self) -> Lanczos:
        return Lanczos(
            self.plan.tolerance,
            self.plan.max_matvecs,
            self.failure,
            min(self.precision, END_PRECISION),
            self.clock.share(0.25),
        )

    def downdated(self, vector: Tensor) -> tuple[Solution, Tensor]:
        """Of H - v v^T for v [B, d], which must be positive semidefinite: the largest eigenvalue, and `smallest_ritz`.

        A pass of its own, since only one on the operator itself certifies how far its eigenvalues may reach.
        """
        solver = self._lanczos
        spaces = self._counted(solver.run(DowndatedOperator(self.hessian, vector), self._draw(0)))
        return solver.read(spaces), smallest_ritz(spaces)

    def draws(self, number: int) -> Tensor:
        """The standard normal vectors of a number, [B, d]; they are kept."""
        if number not in self._drawn:
            self._drawn[number] = self._draw(number)
        return self._drawn[number]

    def _counted(self, spaces: list[KrylovSpace]) -> list[KrylovSpace]:
        self.matvecs += sum(space.tridiagonal.num_products for space in spaces)
        return spaces


def dimension_failure(plan: Plan) -> float:
    """Probability, per sample, that one of the effective dimension's ends is wrong."""
    return DIMENSION_SHARE * plan.failure


def smallest_ritz(spaces: list[KrylovSpace]) -> Tensor:
    """Upper bounds of the smallest eigenvalues, [B], float64; infinite without a product."""
    every = [space.tridiagonal for space in spaces]
    smallest = [
        max(0.0, float(each.ritz().values[0])) + each.slack() if each.num_products else float("inf") for each in every
    ]
    return torch.tensor(smallest, dtype=torch.float64, device=spaces[0].basis.device if spaces else None)
