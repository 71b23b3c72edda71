"""Attacks on the audited samples: observations with the very noise that the proxies were computed for.

One trial is one attack on one batch of samples at one noise level. Batches have a fixed size, so that a result
depends neither on the free memory nor on where a study was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from torch import Tensor

from riskaudit.attacks import Attack, AttackNotApplicable, Observation, Reconstruction
from riskaudit.audit.client import Victim
from riskaudit.audit.rows import image_png
from riskaudit.engine.journal import TrialLog
from riskaudit.errors import SettingsError
from riskaudit.jacobian import JacobianMaker
from riskaudit.metrics import Metric, measure
from riskaudit.release import PerSampleRelease
from riskaudit.results import AttackRow
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator
from riskaudit.statistics.seeding import derived_seed
from riskaudit.studies.settings import with_fields

# Samples that are attacked together.
BATCH_SIZE = 32

Progress = Callable[[int, int], None]


def hyper_parameters(attack: Attack) -> dict[str, float | int | str | bool | None]:
    """An attack's fields as plain data."""
    values = {field.name: getattr(attack, field.name) for field in fields(attack)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if not isinstance(value, Tensor) and name != "start"}


def releases_by_noise(release: PerSampleRelease, noise_stds: Sequence[float]) -> dict[float, PerSampleRelease]:
    """The release at every noise level; its own noise where none is named.

    Raises:
        SettingsError: a level that isn't finite or is negative.
    """
    if not noise_stds:
        return {0.0 if release.noise is None else release.noise.std: release}
    for std in noise_stds:
        if not (np.isfinite(std) and std >= 0):
            raise SettingsError(f"expected `noise_stds` of at least 0, found {std:g}")
    return {std: release.with_noise(std) if std > 0 else release.without_noise() for std in noise_stds}


@dataclass(frozen=True, eq=False)
class Target:
    """A victim's release at one noise level, ready to be observed."""

    victim: Victim
    jacobian: JacobianMaker
    noise_std: float
    labels_known: bool

    def observe(self, indices: list[int]) -> Observation:
        """What the attacker gets of some samples: the noise is the draw that map_i2f and i2f were computed for."""
        batch, release, seed = self.victim.batch(indices), self.jacobian.release, self.victim.settings.seed
        released = self.jacobian(batch).mean().detach()
        if release.noise is not None:
            drawn = [release.sample_noise(sample_generator(seed, index, NOISE_STREAM)) for index in indices]
            released = released + torch.stack(drawn)
        return Observation(
            released=released,
            jacobian=self.jacobian,
            input_shape=tuple(batch.inputs.shape[1:]),
            prior=self.victim.chosen.prior,
            targets=batch.targets if self.labels_known else None,
            input_range=input_range(self.victim),
        )


def input_range(victim: Victim) -> tuple[float, float] | None:
    """Least and greatest value of an input coordinate: pixels in [0, 1]; unknown for other data."""
    inputs = victim.samples.inputs
    within = bool((inputs >= 0).all() and (inputs <= 1).all())
    return (0.0, 1.0) if victim.samples.are_images and within else None


def reconstruct(attack: Attack, target: Target, indices: list[int]) -> Reconstruction:
    """Run an attack on some samples.

    Raises:
        AttackNotApplicable: the attack can't be run on this model or release.
    """
    if attack.oracle_start:
        attack = with_fields(attack, {"start": target.victim.batch(indices).inputs})
    return attack.run(target.observe(indices), _generator(target, attack.name, indices))


def attack_rows(
    name: str, attack: Attack, target: Target, indices: list[int], metrics: Sequence[Metric], show: bool
) -> list[AttackRow]:
    """One row per sample; an attack that can't be run gives rows that say why."""
    ids = [target.victim.samples.ids[index] for index in indices]
    make = partial(
        AttackRow,
        attack=name,
        noise_std=target.noise_std,
        oracle_start=attack.oracle_start,
        label_known=target.labels_known,
    )
    try:
        found = reconstruct(attack, target, indices)
    except AttackNotApplicable as reason:
        return [
            make(
                sample_id=sample,
                status="not_applicable",
                reason=str(reason),
                metrics={metric.name: None for metric in metrics},
                objective=None,
                steps=0,
                seconds=0.0,
            )
            for sample in ids
        ]
    measured = measure(metrics, found.inputs, target.victim.batch(indices).inputs)
    objectives = found.objective.tolist()
    return [
        make(
            sample_id=sample,
            status=found.status[place],
            metrics=measured[place],
            objective=objectives[place] if np.isfinite(objectives[place]) else None,
            steps=int(found.steps[place]),
            restarts=found.restarts,
            seconds=found.seconds / len(ids),
            recovered_label=None if target.labels_known else int(found.targets[place]),
            image_png=image_png(found.inputs[place]) if show else None,
        )
        for place, sample in enumerate(ids)
    ]


def recorded_rows(
    trials: TrialLog, name: str, attack: Attack, target: Target, indices: list[int], metrics: Sequence[Metric],
    show: bool,
) -> list[AttackRow]:  # fmt: skip
    """`attack_rows`, run once."""
    run = partial(attack_rows, name, attack, target, indices, metrics, show)
    return trials.records(trial_key(name, target, indices), AttackRow, run)


def trial_key(name: str, target: Target, indices: list[int]) -> str:
    """The key of one attack on one batch at one noise level."""
    return f"{name} {target.noise_std!r} {indices[0]}"


def batches(count: int) -> list[list[int]]:
    """Positions of samples that are attacked together."""
    return [list(range(first, min(first + BATCH_SIZE, count))) for first in range(0, count, BATCH_SIZE)]


def _generator(target: Target, name: str, indices: list[int]) -> torch.Generator:
    """Random draws of one trial's own, so that trials may run in any order."""
    digest = hashlib.sha256(f"{name} {target.noise_std!r}".encode()).digest()[:8]
    seed = derived_seed(target.victim.settings.seed, int.from_bytes(digest), indices[0])
    return torch.Generator().manual_seed(seed)
