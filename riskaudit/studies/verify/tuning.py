"""Choice of an attack's hyper-parameters from its small grid, on samples that are not reported.

The candidate with the least mean RMSE wins: choosing by the truth is the auditor's privilege, on samples of which
nothing is claimed. It makes attacks stronger, so predictions have to hold against more.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from riskaudit.attacks import Attack, AttackNotApplicable
from riskaudit.audit.client import Victim
from riskaudit.engine.journal import TrialLog
from riskaudit.errors import SettingsError
from riskaudit.inputs import Samples
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
            f"--tune needs samples beyond those reported; give a --limit below the {len(samples)} of {samples.name}"
        )
    return samples.select(list(range(limit))), samples.select(list(range(limit, len(samples))))


def tuned(
    attacks: dict[str, Attack], victim: Victim, tuning_samples: Samples | None, trials: TrialLog
) -> dict[str, Attack]:
    """Every attack with the candidate of its grid that did best.

    Raises:
        SettingsError: there are no samples to tune on, or they are among those reported.
    """
    if tuning_samples is None or not len(tuning_samples):
        raise SettingsError("--tune needs samples beyond those reported; lower --limit or add data")
    other = replace(victim, samples=tuning_samples)
    release = victim.release
    std = 0.0 if release.noise is None else release.noise.std
    target = Target(other, victim.jacobian(release), std, labels_known=True)
    chosen = {}
    for name, attack in attacks.items():
        best = trials.once(f"tuning {name}", partial(_best, attack, target))
        chosen[name] = with_fields(attack, dict(attack.grid[best]))
    return chosen


def _best(attack: Attack, target: Target) -> int:
    """Position in the attack's grid."""
    if len(attack.grid) == 1 or attack.oracle_start:
        return 0
    indices = list(range(len(target.victim.samples)))
    truth = target.victim.batch(indices).inputs
    errors = []
    for candidate in attack.grid:
        try:
            found = reconstruct(with_fields(attack, dict(candidate)), target, indices)
        except AttackNotApplicable:
            return 0
        errors.append(float((found.inputs - truth).flatten(1).square().mean(1).sqrt().mean()))
    return min(range(len(errors)), key=errors.__getitem__)
