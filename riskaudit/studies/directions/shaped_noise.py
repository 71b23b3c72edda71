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

from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks import Observation
from riskaudit.attacks.optimise.levenberg_marquardt import MatchingProblem, StoppingRule, status_of
from riskaudit.audit.client import Client
from riskaudit.jacobian import Jacobian, JacobianFactory
from riskaudit.priors.base import BoundPrior, Prior
from riskaudit.release import Batch, Release
from riskaudit.results import Status
from riskaudit.studies.directions.decomposition import Decomposition, Places
from riskaudit.studies.directions.optimal_noise import Vector, layered_covariance, per_layer, shaped_rmse, water_filled
from riskaudit.studies.directions.record import Attacker, Scheme, ShapingAttack, ShapingRow

# Entries without noise are taken for entries with this share of the isotropic noise's std: nothing is exact.
FLOOR = 1e-2
STEPS, PRODUCTS, FORCING, TOLERANCE = 30, 60, 1e-2, 1e-4
# The optimum over layers takes dozens of inverses of d x d.
MOST_FOR_LAYERS = 1024


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


@dataclass(frozen=True, eq=False)
class Shape:
    """A draw of noise [P], and what who knows its law makes of it.

    Attributes:
        delta: the noise, [P].
        weighing: A.
        root: eigenvectors [d, k] and eigenvalues [k] of the preconditioner (J^T A^2 J + I / tau^2)^(-1/2), which is
            tau beyond them.
    """

    delta: Tensor
    weighing: Weighing
    root: tuple[Tensor, Tensor]


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


@dataclass(frozen=True, eq=False)
class _StackedFactory(JacobianFactory):
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

    @override
    def of(self, release: Release) -> _StackedFactory:
        return replace(self, quiet=self.quiet.of(release))


def informed_error(
    quiet: JacobianFactory, batch: Batch, delta: Tensor, shape: Shape, prior: Prior, prior_std: float, steps: int | None
) -> tuple[float | None, Status]:
    """RMSE and status of an attack on one sample's release with noise delta [P], by who takes it for of this shape.

    ``quiet`` makes J of the release without noise; of the prior the mean counts, and ``prior_std``, tau.
    """
    weighing, (vectors, values) = shape.weighing, shape.root
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
class ShapedNoise:
    """Noise in several shapes on one sample, whose J is taken apart in ``decomposition``."""

    decomposition: Decomposition
    places: Places
    budget: Budget

    @cached_property
    def _layers(self) -> dict[str, Tensor]:
        """Entries of the layers that carry noise; none where their optimum isn't computed."""
        if self.decomposition.rows is None or self.decomposition.dimension > MOST_FOR_LAYERS:
            return {}
        return {name: entries for name, entries in self.places.items() if float(self.budget.noisy[entries].sum()) > 0}

    @cached_property
    def _grams(self) -> list[Tensor]:
        rows = self.decomposition.rows
        return [] if rows is None else [rows[entries].mT @ rows[entries] for entries in self._layers.values()]

    @cached_property
    def _filled(self) -> tuple[Vector, float]:
        return water_filled(self.decomposition.values.cpu().numpy(), self.budget.prior_std**2, self.budget.power)

    @cached_property
    def _layered(self) -> tuple[Vector, float]:
        sizes = [int(self.budget.noisy[entries].sum()) for entries in self._layers.values()]
        return per_layer(self._grams, sizes, self.budget.prior_std**2, self.budget.power)

    def predictions(self, sample_id: str) -> ShapingRow:
        """The record without attacks."""
        decomposition, tau2, sigma = self.decomposition, self.budget.prior_std**2, self.budget.noise_std
        values, power = decomposition.values.cpu().numpy(), self.budget.power
        rank, lost = len(values), decomposition.dimension - len(values)
        if decomposition.status != "exact" or not rank:
            reason = decomposition.reason or "H is zero: no noise is needed"
            return ShapingRow(
                sample_id=sample_id, predicted={}, water_level=None, status="not_applicable", reason=reason
            )

        def error(variances: Vector) -> float:
            # Directions that the release doesn't show keep the prior's variance.
            return shaped_rmse(np.pad(values, (0, lost)), np.pad(variances, (0, lost)), tau2)

        filled, level = self._filled
        predicted = {
            "isotropic": error(np.full(rank, sigma**2)),
            "in_range": error(np.full(rank, power / rank)),
            "water_filled": error(filled),
            "water_filled_in_range": error(water_filled(values, tau2, rank * sigma**2)[0]),
        } | ({"per_layer": self._layered[1]} if self._layers else {})
        stds = dict(zip(self._layers, (self._layered[0] ** 0.5).tolist(), strict=True)) if self._layers else {}
        return ShapingRow(
            sample_id=sample_id,
            predicted=predicted,
            water_level=level,
            layer_stds=stds,
            status="exact",
            reason=decomposition.reason,
        )

    def attacks(
        self, client: Client, quiet: JacobianFactory, index: int, generator: torch.Generator, steps: int | None
    ) -> list[ShapingAttack]:
        """Attacks on one draw of isotropic, water-filled and per-layer noise."""
        shapes = self._shapes(generator)
        plain = shapes["isotropic"]
        pairs: list[tuple[Scheme, Attacker, Shape]] = [("isotropic", "knows", plain)]
        for scheme in ("water_filled", "per_layer"):
            if scheme in shapes:
                pairs += [(scheme, "ignores", plain), (scheme, "knows", shapes[scheme])]
        batch, prior, attacks = client.batch([index]), client.chosen.prior, []
        for scheme, attacker, believed in pairs:
            delta, tau = shapes[scheme].delta, self.budget.prior_std
            rmse, status = informed_error(quiet, batch, delta, believed, prior, tau, steps)
            attacks.append(ShapingAttack(scheme=scheme, attacker=attacker, rmse=rmse, status=status))
        return attacks

    def _shapes(self, generator: torch.Generator) -> dict[Scheme, Shape]:
        """Draws from one and the same normal vector g: sigma g, U diag(sqrt(q)) U^T g, and g times each layer's std."""
        decomposition, sigma, tau = self.decomposition, self.budget.noise_std, self.budget.prior_std
        device, floor = decomposition.values.device, FLOOR * sigma
        drawn = torch.randn(len(self.budget.noisy), generator=generator, dtype=torch.float64).to(device)
        drawn = drawn * self.budget.noisy
        whole = Weighing(torch.tensor([1 / sigma], dtype=torch.float64, device=device))
        basis = decomposition.left(list(range(len(decomposition.values))))
        q = torch.from_numpy(self._filled[0]).to(device)
        inside = (q + floor**2).rsqrt()
        shapes: dict[Scheme, Shape] = {
            "isotropic": Shape(
                sigma * drawn, whole, (decomposition.vectors, (decomposition.values / sigma**2 + 1 / tau**2).rsqrt())
            ),
            "water_filled": Shape(
                basis @ (q.sqrt() * (basis.mT @ drawn)),
                Weighing(torch.tensor([1 / floor], dtype=torch.float64, device=device), basis, inside),
                (decomposition.vectors, (decomposition.values * inside**2 + 1 / tau**2).rsqrt()),
            ),
        }
        if self._layers:
            variances, std = self._layered[0], torch.full_like(drawn, floor)
            for entries, variance in zip(self._layers.values(), variances.tolist(), strict=True):
                std[entries] = max(variance**0.5, floor)
            covariance = layered_covariance(self._grams, np.maximum(variances, floor**2), tau**2)
            eigenvalues, vectors = torch.linalg.eigh(covariance)
            shapes["per_layer"] = Shape(std * drawn, Weighing(1 / std), (vectors, eigenvalues.clamp_min(0).sqrt()))
        return shapes
