"""Attackers of shaped noise: least squares with weights of their own and the prior's term, from the truth.

    minimise ||A (r(z) - obs)||^2 + ||z - mu||^2 / tau^2,   A = S^(-1/2) as the attacker believes S to be

The release is stacked with the input itself, so that both terms are one residual [A r(z); z / tau] with the Jacobian
[A J; I / tau], and Levenberg-Marquardt runs as it is. Coordinates are those in which the problem is white at the
truth, which only makes the iteration fast: the start is the truth anyway, so this is evidence on the theory, not an
attack. What it finds is the optimum nearest to the truth: the error of an optimiser that never fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks import Observation
from riskaudit.attacks.optimise.levenberg_marquardt import MatchingProblem, StoppingRule, status_of
from riskaudit.jacobian import Jacobian, JacobianFactory
from riskaudit.priors.base import BoundPrior, Prior
from riskaudit.release import Batch, Release
from riskaudit.results import Status

# Entries without noise are taken for entries with this share of the isotropic noise's std: nothing is exact.
FLOOR = 1e-2
STEPS, PRODUCTS, FORCING, TOLERANCE = 30, 60, 1e-2, 1e-4


@dataclass(frozen=True, eq=False)
class Weighing:
    """A = diag(outside) + U diag(inside - outside) U^T; without U it is diagonal.

    Attributes:
        outside: 1 / std per entry, [P] or one number.
        basis: U, [P, k], orthonormal columns, or None.
        inside: 1 / std along them, [k].
    """

    outside: Tensor
    basis: Tensor | None = None
    inside: Tensor | None = None

    def __call__(self, columns: Tensor) -> Tensor:
        """A on columns [P, K] in float64."""
        scaled = self.outside.reshape(-1, 1) * columns
        if self.basis is None or self.inside is None:
            return scaled
        return scaled + self.basis @ ((self.inside - self.outside).reshape(-1, 1) * (self.basis.mT @ columns))


@final
class StackedJacobian(Jacobian):
    """[A J; I / tau] of copies of one sample."""

    def __init__(self, inner: Jacobian, weighing: Weighing, prior_std: float) -> None:
        super().__init__(inner.release, inner.batch)
        self.inner, self.weighing, self.prior_std = inner, weighing, prior_std
        self.shape = (inner.shape[0] + inner.shape[1], inner.shape[1])

    @override
    def select(self, indices: list[int]) -> StackedJacobian:
        return StackedJacobian(self.inner.select(indices), self.weighing, self.prior_std)

    def mean(self) -> Tensor:
        """[A r; x / tau], [B, P + d]."""
        weighed = self._weigh(self.inner.mean().unsqueeze(-1)).squeeze(-1)
        return torch.cat([weighed, self.batch.inputs.flatten(1) / self.prior_std], dim=1)

    @override
    def losses(self) -> Tensor:
        return self.inner.losses()

    def smallest_eigenvalue_bound(self) -> Tensor:
        """The prior's own."""
        return torch.full((self.num_samples,), self.prior_std**-2, dtype=torch.float64, device=self.device)

    def _weigh(self, columns: Tensor) -> Tensor:
        return torch.stack([self.weighing(each.double()) for each in columns]).to(self.dtype)

    def _matmat(self, columns: Tensor) -> Tensor:
        return torch.cat([self._weigh(self.inner.matmat(columns)), columns / self.prior_std], dim=1)

    def _rmatmat(self, columns: Tensor) -> Tensor:
        size = self.inner.shape[0]
        return self.inner.rmatmat(self._weigh(columns[:, :size])) + columns[:, size:] / self.prior_std

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        return self._rmatmat(self._matmat(columns))

    def _gram_rows(self, columns: Tensor) -> Tensor:
        return self._matmat(columns).mT


@dataclass(frozen=True, eq=False)
class _StackedFactory(JacobianFactory):
    """Makes the stacked Jacobian."""

    quiet: JacobianFactory
    weighing: Weighing
    prior_std: float

    @property
    @override
    def release(self) -> Release:  # type: ignore[override]
        return self.quiet.release

    @override
    def __call__(self, batch: Batch) -> StackedJacobian:
        return StackedJacobian(self.quiet(batch), self.weighing, self.prior_std)


def informed_error(
    quiet: JacobianFactory,
    batch: Batch,
    delta: Tensor,
    weighing: Weighing,
    prior: Prior,
    prior_std: float,
    root: tuple[Tensor, Tensor],
    steps: int | None = None,
) -> tuple[float | None, Status]:
    """RMSE and status of one sample's attack.

    Args:
        quiet: makes J of the release without noise.
        batch: the sample.
        delta: the noise, [P].
        weighing: A.
        prior: whose mean counts.
        prior_std: tau.
        root: eigenvectors [d, k] and eigenvalues [k] of the preconditioner (J^T A^2 J + I / tau^2)^(-1/2), which is
            tau beyond them.
        steps: of Levenberg-Marquardt at most.
    """
    truth = batch.inputs.flatten(1)
    mean = prior.bind(batch.targets, truth).mean
    released = quiet(batch).mean().detach()[0].double() + delta
    observed = torch.cat([weighing(released[:, None])[:, 0], mean[0].double() / prior_std])
    observation = Observation(
        released=observed[None].to(truth),
        jacobian=_StackedFactory(quiet, weighing, prior_std),
        input_shape=tuple(batch.inputs.shape[1:]),
        prior=prior,
        targets=batch.targets,
    )
    vectors, values = root

    def precondition(vector: Tensor) -> Tensor:
        along = vector.double() @ vectors
        return (prior_std * vector.double() + (along * (values - prior_std)) @ vectors.mT).to(vector)

    def around(start: Tensor) -> BoundPrior:
        ones = start.new_ones(len(start), dtype=torch.float64)
        return BoundPrior(start, precondition, precondition, ones, ones, lambda rows: around(start[rows]))

    weights = torch.zeros(1, dtype=torch.float64, device=truth.device)
    problem = MatchingProblem(observation, around(truth), weights)
    limits = StoppingRule(steps or STEPS, PRODUCTS, FORCING, TOLERANCE)
    state = problem.minimise(problem.start(torch.zeros_like(truth)), limits)
    status = status_of(state, 0)
    if status == "failed":
        return None, status
    return float((problem.inputs(state.point) - truth).double().square().mean().sqrt()), status
