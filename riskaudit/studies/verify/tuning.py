"""Choice of an attack's hyper-parameters from its small grid, on samples that are not reported.

The candidate with the least mean RMSE wins: choosing by the truth is the auditor's privilege, on samples of which
nothing is claimed. It makes attacks stronger, so predictions have to hold against more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from typing_extensions import override

from riskaudit.attacks import Attack, AttackNotApplicable
from riskaudit.audit.client import Client
from riskaudit.engine import Engine, Journal, Trial
from riskaudit.errors import SettingsError
from riskaudit.inputs import Samples
from riskaudit.metrics.pixels import mean_squared_error
from riskaudit.studies.attacking import Target, reconstruct
from riskaudit.studies.settings import with_fields

# Samples that are looked at beyond the reported ones.
NUM_SAMPLES = 8


def split_for_tuning(samples: Samples, limit: int | None) -> tuple[Samples, Samples]:
    """The samples to report, and those after them to tune on.

    Raises:
        SettingsError: none are left over.
    """
    if limit is None or len(samples) <= limit:
        raise SettingsError(
            f"`tune` needs samples beyond those reported; give a `limit` below the {len(samples)} of {samples.name}"
        )
    return samples.select(list(range(limit))), samples.select(list(range(limit, len(samples))))


def tuned(
    attacks: Mapping[str, Attack], client: Client, tuning_samples: Samples | None, engine: Engine, journal: Journal
) -> dict[str, Attack]:
    """Every attack with the candidate of its grid that did best.

    Raises:
        SettingsError: there are no samples to tune on, or they are among those reported.
    """
    if tuning_samples is None or not len(tuning_samples):
        raise SettingsError("`tune` needs samples beyond those reported; lower `limit` or add data")
    trials = [TuningTrial(name, attack, tuning_samples) for name, attack in attacks.items()]
    best = engine.map(trials, client, journal)
    return {
        name: with_fields(attack, dict(attack.grid[position]))
        for (name, attack), position in zip(attacks.items(), best, strict=True)
    }


@dataclass(frozen=True, eq=False)
class TuningTrial(Trial[Client]):
    """The choice for one attack, on samples of its own; gives a position in the attack's grid."""

    name: str
    attack: Attack
    samples: Samples

    @property
    @override
    def key(self) -> str:
        return f"tuning {self.name}"

    @property
    @override
    def size(self) -> int:
        return 0

    @override
    def run(self, client: Client) -> int:
        grid = self.attack.grid
        if len(grid) == 1 or self.attack.oracle_start:
            return 0
        target = Target.of(replace(client, samples=self.samples), None, labels_known=True)
        indices = list(range(len(self.samples)))
        truth = target.client.batch(indices).inputs
        errors = []
        for candidate in grid:
            try:
                reconstruction = reconstruct(with_fields(self.attack, dict(candidate)), target, indices)
            except AttackNotApplicable:
                return 0
            errors.append(float(mean_squared_error(reconstruction.inputs, truth).sqrt().mean()))
        return min(range(len(errors)), key=errors.__getitem__)
