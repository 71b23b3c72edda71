"""A perturbation of fixed norm c on the release, along chosen directions: what it should do to an attacker.

    along u_i:           RMSE = c / (sqrt(l_i) sqrt(d))
    along any delta:     RMSE = ||H^-1 J^T delta|| / sqrt(d)          (I2F, Zhang et al., NeurIPS 2023, Eq. 3-4)

To first order, for an attacker without a prior who minimises the squared distance. Protection per unit of noise is
thus 1 / sqrt(l_i): noise along the largest singular direction is all but wasted.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from riskaudit.attacks import ATTACKS, Attack, AttackNotApplicable, Observation
from riskaudit.audit.client import Client
from riskaudit.jacobian import JacobianMaker
from riskaudit.metrics.pixels import mean_squared_error
from riskaudit.release.steps.prune import Prune
from riskaudit.results import Status
from riskaudit.studies.directions.decomposition import Decomposition
from riskaudit.studies.directions.record import DirectionRow
from riskaudit.studies.settings import with_fields


@dataclass(frozen=True)
class Perturbation:
    """One direction: ``delta`` [P], float64, of norm c, and the RMSE that it should force; None where there is none.

    ``share`` is the place in the spectrum of a singular direction, ``eigenvalue`` its l.
    """

    name: str
    delta: Tensor | None
    predicted: float | None
    status: Status
    reason: str | None = None
    share: float | None = None
    eigenvalue: float | None = None

    def row(self, sample_id: str, reached: dict[str, tuple[float | None, Status]]) -> DirectionRow:
        """The record, with RMSE and status per attack."""
        return DirectionRow(
            sample_id=sample_id,
            direction=self.name,
            share=self.share,
            eigenvalue=self.eigenvalue,
            predicted_rmse=self.predicted,
            status=self.status,
            reason=self.reason,
            attacked={name: rmse for name, (rmse, _) in reached.items() if rmse is not None},
            attack_status={name: status for name, (_, status) in reached.items()},
        )


def perturbations(
    decomposition: Decomposition, norm: float, shares: tuple[float, ...], prune_ratio: float, generator: torch.Generator
) -> list[Perturbation]:
    """Singular directions at shares of the spectrum, then a random one in J's range, pruning's, and isotropic noise."""
    singular = [_singular(decomposition, share, norm) for share in sorted(set(shares), reverse=True)]
    size, known = decomposition.jacobian.shape[0], len(decomposition.values)
    others: dict[str, Tensor | None] = {"random": None}
    if decomposition.status == "exact" and known:
        # U g = J V diag(l)^(-1/2) g: normal within the range of J.
        drawn = torch.randn(known, generator=generator, dtype=torch.float64).to(decomposition.values.device)
        others["random"] = decomposition.push((decomposition.vectors @ (drawn / decomposition.values.sqrt()))[:, None])[
            :, 0
        ]
    released = decomposition.jacobian.mean().detach()[0]
    pruned = Prune(prune_ratio).bind(decomposition.jacobian.release.context)(released)
    others["pruning"] = (pruned - released).double()
    others["noise"] = torch.randn(size, generator=generator, dtype=torch.float64).to(released.device)
    return [*singular, *(_general(decomposition, name, delta, norm) for name, delta in others.items())]


def _singular(decomposition: Decomposition, share: float, norm: float) -> Perturbation:
    name, known = {1.0: "largest", 0.0: "smallest"}.get(share, f"quantile {share:g}"), len(decomposition.values)
    if not known or (decomposition.status != "exact" and share < 1):
        reason = decomposition.reason or "H is zero"
        return Perturbation(name, None, None, "not_applicable", reason, share)
    place = round(share * (known - 1))
    value = float(decomposition.values[place])
    predicted = norm / (value * decomposition.dimension) ** 0.5
    return Perturbation(name, norm * decomposition.left([place])[:, 0], predicted, "exact", None, share, value)


def _general(decomposition: Decomposition, name: str, delta: Tensor | None, norm: float) -> Perturbation:
    length = 0.0 if delta is None else float(delta.norm())
    if delta is None or length == 0:
        reason = decomposition.reason if delta is None else f"{name} changes nothing in this release"
        return Perturbation(name, None, None, "not_applicable", reason)
    delta = delta * (norm / length)
    if decomposition.status != "exact":
        return Perturbation(name, delta, None, "not_applicable", decomposition.reason)
    if not decomposition.is_regular:
        return Perturbation(name, delta, None, "singular", decomposition.reason or "H is singular")
    error = decomposition.solve(decomposition.pull(delta))
    return Perturbation(name, delta, float(error.norm()) / decomposition.dimension**0.5, "exact")


def attacked(
    attacks: dict[str, Attack], client: Client, quiet: JacobianMaker, index: int, deltas: dict[str, Tensor],
    generator: torch.Generator,
) -> dict[str, dict[str, tuple[float | None, Status]]]:  # fmt: skip
    """RMSE and status by perturbation and attack, of all attacks on one sample's release plus each delta [P]."""
    batch = client.batch([index] * len(deltas))
    truth = batch.inputs
    released = quiet(batch).mean().detach() + torch.stack(list(deltas.values())).to(truth)
    observation = Observation(
        released=released,
        jacobian=quiet,
        input_shape=tuple(truth.shape[1:]),
        prior=client.chosen.prior,
        targets=batch.targets,
        input_range=client.input_range,
    )
    reached: dict[str, dict[str, tuple[float | None, Status]]] = {name: {} for name in deltas}
    for name, attack in attacks.items():
        begun = with_fields(attack, {"start": truth}) if ATTACKS[name].oracle_start else attack
        outcomes: list[tuple[float | None, Status]] = [(None, "not_applicable")] * len(deltas)
        with contextlib.suppress(AttackNotApplicable):
            reconstruction = begun.run(observation, generator)
            errors = mean_squared_error(reconstruction.inputs, truth).sqrt().tolist()
            pairs = zip(errors, reconstruction.status, strict=True)
            outcomes = [(error if status != "failed" else None, status) for error, status in pairs]
        for direction, outcome in zip(deltas, outcomes, strict=True):
            reached[direction][name] = outcome
    return reached
