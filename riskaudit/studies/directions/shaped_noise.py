"""Noise of one power in several shapes on one sample: predicted posterior error, and what attackers make of a draw.

Power is the trace of the noise's covariance. Isotropic noise spends sigma^2 on each of P entries, of which only rank(J)
dimensions count to first order, so a shape can win twice: by staying in J's range, and by its form there. Hence
isotropic noise within the range and water-filled noise at the power that isotropic noise has there are predicted too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from riskaudit.audit.client import Client
from riskaudit.jacobian import JacobianMaker
from riskaudit.studies.directions.decomposition import Decomposition
from riskaudit.studies.directions.informed import FLOOR, Weighing, informed_error
from riskaudit.studies.directions.layers import Places
from riskaudit.studies.directions.optimal_noise import Vector, layered_covariance, per_layer, shaped_rmse, water_filled
from riskaudit.studies.directions.record import Attacker, Scheme, ShapingAttack, ShapingRow

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
