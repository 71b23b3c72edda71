"""Noise of one power in several shapes on one sample: predicted posterior error, and what attackers make of a draw.

Power is the trace of the noise's covariance. Isotropic noise spends sigma^2 on each of P entries, of which only rank(J)
dimensions count to first order, so a shape can win twice: by staying in J's range, and by its form there. Hence
isotropic noise within the range and water-filled noise at the power that isotropic noise has there are predicted too.

Attackers of shaped noise: least squares with weights of their own and the prior's term, from the truth.

    minimise ||A (r(z) - obs)||^2 + ||z - mu||^2 / tau^2,   A = S^(-1/2) as the attacker believes S to be

The release is stacked with the input itself, so that both terms are one residual [A r(z); z / tau] with the Jacobian
[A J; I / tau], and Levenberg-Marquardt runs as it is. Coordinates are those in which the problem is white at the
truth, which only makes the iteration fast: the start is the truth anyway, so this is evidence on the theory, not an
attack. What it finds is the optimum nearest to the truth: the error of an optimiser that never fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks import Observation
from riskaudit.attacks.optimise.levenberg_marquardt import MatchingProblem, StoppingRule, status_of
from riskaudit.audit.client import Client
from riskaudit.jacobian import Jacobian, JacobianFactory, JacobianMaker
from riskaudit.priors.base import BoundPrior, Prior
from riskaudit.release import Batch, Release
from riskaudit.results import Status
from riskaudit.studies.directions.decomposition import Decomposition, Places
from riskaudit.studies.directions.optimal_noise import Vector, layered_covariance, per_layer, shaped_rmse, water_filled
from riskaudit.studies.directions.record import Attacker, Scheme, ShapingAttack, ShapingRow

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


# The optimum over layers takes dozens of inverses of d x d.
MOST_FOR_LAYERS = 1024


@dataclass(frozen=True, eq=False)
class Budget:
    """What all shapes share.

    Attributes:
        noise_std: sigma of isotropic noise, per released entry.
        noisy: 1 where a released entry carries noise, [P], float64.
        prior_std: tau.
    """

    noise_std: float
    noisy: Tensor
    prior_std: float

    @property
    def power(self) -> float:
        """Trace of the isotropic noise's covariance."""
        return float(self.noisy.sum()) * self.noise_std**2


@dataclass(frozen=True, eq=False)
class _Shape:
    """A draw of one scheme's noise [P], the weights of who knows it, and of the matching preconditioner."""

    delta: Tensor
    weighing: Weighing
    root: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Shaping:
    """Noise in several shapes on one sample."""

    row: ShapingRow
    filled: Vector
    variances: Vector


def shaping_row(sample_id: str, at: Decomposition, places: Places, budget: Budget) -> Shaping:
    """Predictions of one sample."""
    if at.status != "exact" or not len(at.values):
        reason = at.reason or "H is zero: no noise is needed"
        row = ShapingRow(sample_id=sample_id, predicted={}, water_level=None, status="not_applicable", reason=reason)
        return Shaping(row, np.zeros(0), np.zeros(0))
    values, tau2 = at.values.cpu().numpy(), budget.prior_std**2
    lost = at.dimension - len(values)
    power, rank = budget.power, len(values)

    def error(variances: Vector) -> float:
        # Directions that the release doesn't show keep the prior's variance.
        return shaped_rmse(np.pad(values, (0, lost)), np.pad(variances, (0, lost)), tau2)

    filled, level = water_filled(values, tau2, power)
    predicted = {
        "isotropic": error(np.full(rank, budget.noise_std**2)),
        "in_range": error(np.full(rank, power / rank)),
        "water_filled": error(filled),
        "water_filled_in_range": error(water_filled(values, tau2, rank * budget.noise_std**2)[0]),
    }
    stds, variances = {}, np.zeros(0)
    kept = {layer: entries for layer, entries in places.items() if float(budget.noisy[entries].sum()) > 0}
    if at.rows is not None and at.dimension <= MOST_FOR_LAYERS:
        grams = [at.rows[entries].mT @ at.rows[entries] for entries in kept.values()]
        counts = [int(budget.noisy[entries].sum()) for entries in kept.values()]
        variances, predicted["per_layer"] = per_layer(grams, counts, tau2, power)
        stds = {layer: float(variance**0.5) for layer, variance in zip(kept, variances, strict=True)}
    row = ShapingRow(
        sample_id=sample_id, predicted=predicted, water_level=level, layer_stds=stds, status="exact", reason=at.reason
    )
    return Shaping(row, filled, variances)


def with_attacks(
    shaping: Shaping, at: Decomposition, places: Places, budget: Budget, client: Client, quiet: JacobianMaker,
    index: int, generator: torch.Generator, steps: int | None,
) -> ShapingRow:  # fmt: skip
    """The row with attacks on one draw of isotropic, water-filled and per-layer noise."""
    if shaping.row.status != "exact":
        return shaping.row
    shapes = _shapes(shaping.filled, shaping.variances, at, places, budget, generator)
    plain = shapes["isotropic"]
    pairs: list[tuple[Scheme, Attacker, _Shape]] = [("isotropic", "knows", plain)]
    for scheme in ("water_filled", "per_layer"):
        if scheme in shapes:
            pairs += [(scheme, "ignores", plain), (scheme, "knows", shapes[scheme])]
    batch, attacks = client.batch([index]), []
    for scheme, attacker, believed in pairs:
        rmse, status = informed_error(
            quiet, batch, shapes[scheme].delta, believed.weighing, client.chosen.prior, budget.prior_std,
            believed.root, steps,
        )  # fmt: skip
        attacks.append(ShapingAttack(scheme=scheme, attacker=attacker, rmse=rmse, status=status))
    return shaping.row.model_copy(update={"attacks": attacks})


def _shapes(
    filled: Vector, variances: Vector, at: Decomposition, places: Places, budget: Budget, generator: torch.Generator
) -> Mapping[Scheme, _Shape]:
    """Draws from one and the same normal vector g: sigma g, U diag(sqrt(q)) U^T g, and g times each layer's std."""
    sigma, tau = budget.noise_std, budget.prior_std
    device = at.values.device
    drawn = torch.randn(len(budget.noisy), generator=generator, dtype=torch.float64).to(device) * budget.noisy
    whole = Weighing(torch.tensor([1 / sigma], dtype=torch.float64, device=device))
    found: dict[Scheme, _Shape] = {}
    found["isotropic"] = _Shape(sigma * drawn, whole, (at.vectors, (at.values / sigma**2 + 1 / tau**2).rsqrt()))
    floor = torch.tensor([1 / (FLOOR * sigma)], dtype=torch.float64, device=device)
    basis = at.left(list(range(len(at.values))))
    q = torch.from_numpy(filled).to(device)
    inside = (q + (FLOOR * sigma) ** 2).rsqrt()
    found["water_filled"] = _Shape(
        basis @ (q.sqrt() * (basis.mT @ drawn)),
        Weighing(floor, basis, inside),
        (at.vectors, (at.values * inside**2 + 1 / tau**2).rsqrt()),
    )
    if len(variances) and at.rows is not None:
        std = torch.full_like(drawn, FLOOR * sigma)
        kept = [entries for entries in places.values() if float(budget.noisy[entries].sum()) > 0]
        for entries, variance in zip(kept, variances.tolist(), strict=True):
            std[entries] = max(variance**0.5, FLOOR * sigma)
        grams = [at.rows[entries].mT @ at.rows[entries] for entries in kept]
        floored = np.maximum(variances, (FLOOR * sigma) ** 2)
        covariance, vectors = torch.linalg.eigh(layered_covariance(grams, floored, tau**2))
        found["per_layer"] = _Shape(std * drawn, Weighing(1 / std), (vectors, covariance.clamp_min(0).sqrt()))
    return found
