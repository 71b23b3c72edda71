"""Attacks on the audited samples: observations with the very noise that the proxies were computed for.

One trial is one attack on one batch of samples at one noise level. Batches have a fixed size, so that a result
depends neither on the free memory nor on where a study was interrupted.

Attacks must reconstruct what is known to be reconstructible, else they prove nothing: their positive control is an
undefended lenet with weights uniform in (-0.5, 0.5), the network and initialization on which gradient inversion was
shown first (Zhu et al., NeurIPS 2019), on handwritten digits that come with the package.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.attacks import Attack, AttackNotApplicable, Observation, Reconstruction
from riskaudit.attacks.optimise.batch_norms import running_statistics
from riskaudit.audit import AuditSettings
from riskaudit.audit.client import Client, make_client
from riskaudit.audit.rows import image_png
from riskaudit.engine import Trial
from riskaudit.errors import SettingsError
from riskaudit.inputs import load_samples
from riskaudit.inputs.architectures.convolutional import WIDTH, LeNet
from riskaudit.jacobian import AnyJacobianMaker
from riskaudit.linalg import Deadline
from riskaudit.metrics import Metric, Subject, make_metrics, measure
from riskaudit.metrics.pixels import mean_squared_error
from riskaudit.release import Release
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator
from riskaudit.statistics.seeding import derived_seed
from riskaudit.studies.budget import UNLIMITED, Budget
from riskaudit.studies.rows import TIME_REASONS, AttackRow, AttackStatus, Control
from riskaudit.studies.settings import with_fields

# Samples that are attacked together.
BATCH_SIZE = 32
# By client, whose samples are private: they go when the client goes.
_METRICS: WeakKeyDictionary[Client, dict[tuple[str, ...], tuple[Metric, ...]]] = WeakKeyDictionary()
NUM_SAMPLES = 4
# Median RMSE of pixels in [0, 1] that the best attack has to reach: far below the 0.3 of a blind guess.
LIMIT = 0.05
# Strongest first, so that the others need not run.
ORDER = ("gauss-newton", "inverting-gradients", "dlg")


def hyper_parameters(attack: Attack) -> dict[str, float | int | str | bool | None]:
    """An attack's fields as plain data."""
    values = {field.name: getattr(attack, field.name) for field in fields(attack)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if not isinstance(value, Tensor) and name != "start"}


def noise_levels(release: Release, noise_stds: Sequence[float]) -> dict[float, float | None]:
    """What `Client.at_noise` takes, by std; the release's own noise where none is named.

    Raises:
        SettingsError: a level that isn't finite or is negative.
    """
    if not noise_stds:
        return {0.0 if release.noise is None else release.noise.std: None}
    for std in noise_stds:
        if not (np.isfinite(std) and std >= 0):
            raise SettingsError(f"expected `noise_stds` of at least 0, found {std:g}")
    return {std: std for std in noise_stds}


@dataclass(frozen=True, eq=False)
class Target:
    """A client's release at one noise level, ready to be observed."""

    client: Client
    jacobian: AnyJacobianMaker
    noise_std: float
    labels_known: bool
    deadline: Deadline | None = None

    @classmethod
    def of(
        cls, client: Client, noise_std: float | None, labels_known: bool, deadline: Deadline | None = None
    ) -> Target:
        """The target at a level that `Client.at_noise` takes, attacked until a deadline."""
        release = client.at_noise(noise_std).release
        std = 0.0 if release.noise is None else release.noise.std
        return cls(client, client.jacobian(release), std, labels_known, deadline)

    def observe(self, indices: list[int]) -> Observation:
        """What the attacker gets of some samples: the noise is the draw that map_i2f and i2f were computed for.

        Args:
            indices: of the samples of whole uploads.
        """
        size, release, seed = self.client.upload_size, self.jacobian.release, self.client.settings.seed
        batch = self.client.upload_batch([index // size for index in indices[::size]])
        released = self.jacobian(batch).mean().detach()
        if release.noise is not None:
            drawn = [release.sample_noise(sample_generator(seed, index, NOISE_STREAM)) for index in indices[::size]]
            released = released + torch.stack(drawn)
        return Observation(
            released=released,
            jacobian=self.jacobian,
            input_shape=tuple(batch.inputs.shape[1:]),
            prior=self.client.chosen.prior,
            targets=batch.targets if self.labels_known else None,
            input_range=self.client.input_range,
            upload_size=size,
            layer_statistics=self.layer_statistics(len(released)),
            deadline=self.deadline,
        )

    def layer_statistics(self, num_uploads: int) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Running statistics of the model that the client was sent, where it computes with those of its batches.

        Those that never saw a batch say nothing of the data.
        """
        if not self.client.mixes_samples:
            return None
        trained = {
            name
            for name, layer in self.client.checkpoint.model.named_modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and int(layer.num_batches_tracked or 0) > 0
        }
        running, device = running_statistics(self.client.checkpoint.model), self.client.device
        return {
            name: (mean.to(device).expand(num_uploads, -1), variance.to(device).expand(num_uploads, -1))
            for name, (mean, variance) in running
            if name in trained
        }


def reconstruct(attack: Attack, target: Target, indices: list[int]) -> Reconstruction:
    """Run an attack on some samples.

    Raises:
        AttackNotApplicable: the attack can't be run on this model or release.
        OutOfTimeError: the target's deadline came first.
    """
    if attack.oracle_start:
        attack = with_fields(attack, {"start": target.client.batch(indices).inputs})
    # Random draws of one trial's own, so that trials may run in any order.
    digest = hashlib.sha256(f"{attack.name} {target.noise_std!r}".encode()).digest()[:8]
    seed = derived_seed(target.client.settings.seed, int.from_bytes(digest), indices[0])
    return attack.run(target.observe(indices), torch.Generator().manual_seed(seed))


def attack_rows(
    name: str, attack: Attack, target: Target, indices: list[int], metrics: Sequence[Metric], show: bool
) -> list[AttackRow]:
    """One row per sample; an attack that can't be run gives rows that say why."""
    ids = [target.client.samples.ids[index] for index in indices]
    make = partial(
        AttackRow,
        attack=name,
        noise_std=target.noise_std,
        oracle_start=attack.oracle_start,
        label_known=target.labels_known,
    )
    try:
        reconstruction = reconstruct(attack, target, indices)
    except AttackNotApplicable as reason:
        names = [metric.name for metric in metrics]
        return [_without_result(make, sample, names, "not_applicable", str(reason)) for sample in ids]
    truth, size = target.client.batch(indices).inputs, target.client.upload_size
    order = matched_order(reconstruction.inputs, truth, size)
    inputs, labels = reconstruction.inputs[order], reconstruction.targets[order]
    measured = measure(metrics, inputs, truth)
    objectives = reconstruction.objective.tolist()
    return [
        make(
            sample_id=sample,
            status=reconstruction.status[position // size],
            metrics=measured[position],
            objective=objectives[position // size] if np.isfinite(objectives[position // size]) else None,
            steps=int(reconstruction.steps[position // size]),
            restarts=reconstruction.restarts,
            seconds=reconstruction.seconds / len(ids),
            recovered_label=None if target.labels_known else int(labels[position]),
            image_png=image_png(inputs[position]) if show else None,
        )
        for position, sample in enumerate(ids)
    ]


def _without_result(
    make: Callable[..., AttackRow], sample_id: str, metrics: Sequence[str], status: AttackStatus, reason: str
) -> AttackRow:
    return make(
        sample_id=sample_id,
        status=status,
        reason=reason,
        metrics=dict.fromkeys(metrics),
        objective=None,
        steps=0,
        seconds=0.0,
    )


def matched_order(guesses: Tensor, truth: Tensor, upload_size: int) -> list[int]:
    """Which guess [B n, *S] stands for which sample: the assignment within each upload with the least squared errors.

    Samples of one class begin from one mean and may come out in each other's places; the auditor knows better.
    """
    order = []
    for first in range(0, len(truth), upload_size):
        part = slice(first, first + upload_size)
        costs = torch.cdist(guesses[part].flatten(1).double(), truth[part].flatten(1).double()).square()
        rows, columns = linear_sum_assignment(costs.nan_to_num(torch.inf).clamp_max(1e300).cpu().numpy())
        places = dict(zip(columns.tolist(), rows.tolist(), strict=True))
        order += [first + places[place] for place in range(len(costs))]
    return order


def metrics_of(client: Client, names: tuple[str, ...]) -> tuple[Metric, ...]:
    """Metrics on a client's samples; made once for all trials on it, since some read networks."""
    of_client = _METRICS.setdefault(client, {})
    if names not in of_client:
        inputs = client.samples.inputs
        span = client.input_range or (float(inputs.min()), float(inputs.max()))
        of_client[names] = make_metrics(Subject(tuple(inputs.shape[1:]), span, client.release.model), names)
    return of_client[names]


@dataclass(frozen=True)
class AttackTrial(Trial[Client]):
    """One attack on one batch of samples at one noise level; gives `AttackRow` as plain data."""

    key: str
    name: str
    attack: Attack
    noise_std: float | None
    indices: tuple[int, ...]
    labels_known: bool
    metrics: tuple[str, ...]
    show_samples: bool
    size: int = 1
    budget: Budget = UNLIMITED

    @override
    def run(self, client: Client) -> list[dict[str, Any]]:
        with self.budget.of_trial(self.key):
            target = Target.of(client, self.noise_std, self.labels_known, self.budget.deadline)
            metrics = metrics_of(client, self.metrics)
            rows = attack_rows(self.name, self.attack, target, list(self.indices), metrics, self.show_samples)
            return [row.model_dump(mode="json") for row in rows]

    def without_result(self, client: Client, status: AttackStatus) -> list[AttackRow]:
        """Rows that say that the budget of time kept the attack from its end, or from its beginning."""
        make = partial(
            AttackRow,
            attack=self.name,
            noise_std=Target.of(client, self.noise_std, self.labels_known).noise_std,
            oracle_start=self.attack.oracle_start,
            label_known=self.labels_known,
        )
        ids = [client.samples.ids[index] for index in self.indices]
        return [_without_result(make, sample, self.metrics, status, TIME_REASONS[status]) for sample in ids]


def attack_trials(
    attacks: Mapping[str, Attack],
    levels: Mapping[float, float | None],
    usable: Sequence[int],
    *,
    labels_known: bool = True,
    metrics: tuple[str, ...] = ("rmse",),
    show_samples: bool = False,
    upload_size: int = 1,
    budget: Budget = UNLIMITED,
) -> list[AttackTrial]:
    """Every attack at every noise level on every batch of the usable samples, those of an upload together."""
    trials, parts = [], batches(len(usable), upload_size)
    for (level, noise_std), (name, attack), batch in product(levels.items(), attacks.items(), parts):
        indices = tuple(usable[position] for position in batch)
        key = f"{name} {level!r} {indices[0]}"
        shared = (labels_known, metrics, show_samples)
        trials.append(AttackTrial(key, name, attack, noise_std, indices, *shared, len(indices), budget))
    return trials


def rows_of(results: Sequence[list[dict[str, Any]]]) -> list[AttackRow]:
    """The rows of finished attack trials."""
    return [AttackRow.model_validate(row) for result in results for row in result]


def batches(count: int, upload_size: int = 1) -> list[list[int]]:
    """Positions of samples that are attacked together: of whole uploads."""
    size = max(1, BATCH_SIZE // upload_size) * upload_size
    return [list(range(first, min(first + size, count))) for first in range(0, count, size)]


def control_order(attacks: Mapping[str, Attack]) -> list[str]:
    """The attacks that the control tries, in order, until one passes; those started at the truth don't count."""
    return sorted(
        (name for name, attack in attacks.items() if not attack.oracle_start),
        key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER),
    )


def control_target(settings: AuditSettings, deadline: Deadline | None = None) -> Target:
    """The control's undefended network and digits."""
    plain = AuditSettings(dtype=settings.dtype, device=settings.device, seed=settings.seed, loss="cross-entropy")
    path = Path(str(files("riskaudit").joinpath("demo", "digits.npz")))
    samples = replace(load_samples(path, channels=1, limit=NUM_SAMPLES), name="digits")
    generator = torch.Generator().manual_seed(settings.seed)
    # 8 x 8 digits leave a quarter of each side after the strides.
    model = LeNet(channels=1, features=WIDTH * 4, classes=10)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    return Target.of(make_client(model.eval(), samples, plain), None, labels_known=True, deadline=deadline)


def control(attacks: Mapping[str, Attack], settings: AuditSettings, deadline: Deadline | None = None) -> Control:
    """Whether one of the attacks reconstructs; those started at the truth don't count.

    Raises:
        OutOfTimeError: the deadline came first.
    """
    names = control_order(attacks)
    if not names:
        return Control(status="skipped", rmse=None, reason="every attack chosen is started at the truth")
    target = control_target(settings, deadline)
    samples = target.client.samples
    indices = list(range(len(samples)))
    best: tuple[float, str] | None = None
    for name in names:
        try:
            reconstruction = reconstruct(attacks[name], target, indices)
        except AttackNotApplicable:
            continue
        errors = mean_squared_error(reconstruction.inputs, target.client.batch(indices).inputs).sqrt()
        median = statistics.median(errors.tolist())
        if best is None or median < best[0]:
            best = (median, name)
        if median <= LIMIT:
            break
    if best is None:
        reason = "none of the attacks chosen can be run on the control's network"
        return Control(status="skipped", rmse=None, limit=LIMIT, num_samples=len(samples), reason=reason)
    return Control(
        status="passed" if best[0] <= LIMIT else "failed",
        rmse=best[0],
        limit=LIMIT,
        attack=best[1],
        num_samples=len(samples),
    )


@dataclass(frozen=True)
class ControlTrial(Trial[Client]):
    """The control of a study; gives a `Control` as plain data."""

    attacks: Mapping[str, Attack]
    budget: Budget = UNLIMITED

    key, size = "control", 0

    @override
    def run(self, client: Client) -> dict[str, Any]:
        with self.budget.of_trial(self.key):
            return control(self.attacks, client.settings, self.budget.deadline).model_dump(mode="json")
