"""Attacks on the audited samples: observations with the very noise that the proxies were computed for.

One trial is one attack on one batch of samples at one noise level. Batches have a fixed size, so that a result
depends neither on the free memory nor on where a study was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.attacks import Attack, AttackNotApplicable, Observation, PublicTexts, Reconstruction
from riskaudit.attacks.optimise.batch_norms import running_statistics
from riskaudit.attacks.plausibility import at_noise_floor
from riskaudit.audit.client import Client
from riskaudit.audit.rows import image_png
from riskaudit.engine import Trial
from riskaudit.errors import SettingsError
from riskaudit.inputs.architectures.precode import num_bottleneck_draws
from riskaudit.jacobian import AnyJacobianMaker
from riskaudit.linalg import Deadline
from riskaudit.metrics import Metric, Subject, TextVocabulary, make_metrics, measure
from riskaudit.metrics.base import real_positions
from riskaudit.metrics.pixels import mean_squared_error
from riskaudit.release import Release
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator
from riskaudit.statistics.seeding import derived_seed
from riskaudit.studies.budget import UNLIMITED, Budget
from riskaudit.studies.rows import TIME_REASONS, AttackRow, AttackStatus, SearchEnd
from riskaudit.studies.settings import SearchEffort, with_fields

# Samples that are attacked together.
BATCH_SIZE = 32
# RMSE, in the prior's standard deviations, up to which a sample counts as inverted: 0.05 for most pixels in [0, 1].
INVERTED_SHARE = 1 / 6
# By client, whose samples are private: they go when the client goes.
_METRICS: WeakKeyDictionary[Client, dict[tuple[str, ...], tuple[Metric, ...]]] = WeakKeyDictionary()


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


def refuse_several_draws(client: Client) -> None:
    """Refuse to attack what was audited over several draws of a bottleneck's noise.

    Raises:
        SettingsError: that is so.
    """
    count = num_bottleneck_draws(client.release.model)
    if count > 1:
        raise SettingsError(
            f"expected one draw of the bottleneck's noise to attack, found {count}; give `model_defense` one number, "
            "and scan over several"
        )


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
        """The target at a level that `Client.at_noise` takes, attacked until a deadline.

        Raises:
            SettingsError: the client's audit looks at several draws of a bottleneck's noise, of which uploads have one.
        """
        refuse_several_draws(client)
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
            numbers=batch.numbers,
            encoding=self.client.samples.encoding,
            texts=self._public_texts(batch.lengths),
        )

    def _public_texts(self, lengths: Tensor | None) -> PublicTexts | None:
        tokens = self.client.samples.tokens
        if tokens is None or lengths is None:
            return None
        return PublicTexts(lengths, tokens.vocabulary.to(self.client.device))

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


@dataclass(frozen=True, eq=False)
class Search:
    """What an attack made of some samples, and why it ended.

    Attributes:
        reconstruction: the best by the attack's objective.
        restarts: starts of each upload, at most.
        ended_by: see `AttackRow`, of each upload.
    """

    reconstruction: Reconstruction
    restarts: list[int]
    ended_by: list[SearchEnd | None]


def search(attack: Attack, target: Target, indices: list[int], effort: SearchEffort) -> Search:
    """Run an attack on some samples, on those whose first start got stuck with as much effort as is asked for.

    With noise an adaptive search looks further only where that is known to lead somewhere: where the first start
    inverts the sample's undefended gradient. What proxies say of the sample, which attacks are to verify, has no part
    in it. Without noise a sample is its own control, and the attack goes on until its objective is at the floor.

    Raises:
        AttackNotApplicable: the attack can't be run on this model or release.
        OutOfTimeError: the target's deadline came first.
    """
    is_adaptive = effort == "adaptive" and target.noise_std > 0 and attack.first != attack
    found = reconstruct(attack.first if is_adaptive else attack, target, indices)
    restarts, ended = [found.restarts] * len(found.objective), _at_floor(target, indices, found)
    stuck = [upload for upload, at_floor in enumerate(ended) if not at_floor] if is_adaptive else []
    if stuck:
        inverts = _inverts_undefended(attack, target, _of_uploads(target, indices, stuck))
        worth = [upload for upload, does in zip(stuck, inverts, strict=True) if does]
        if worth:
            found = found.improved_by(reconstruct(attack, target, _of_uploads(target, indices, worth)), worth)
            ended = _at_floor(target, indices, found)
        restarts = [found.restarts if upload in worth else 1 for upload in range(len(restarts))]
        stuck = [upload for upload in stuck if upload not in worth]
    reasons: list[SearchEnd | None] = [
        "noise_floor" if at_floor else "control" if upload in stuck else None for upload, at_floor in enumerate(ended)
    ]
    return Search(found, restarts, reasons)


def _of_uploads(target: Target, indices: Sequence[int], uploads: Sequence[int]) -> list[int]:
    size = target.client.upload_size
    return [index for upload in uploads for index in indices[upload * size : (upload + 1) * size]]


def _at_floor(target: Target, indices: list[int], found: Reconstruction) -> list[bool]:
    """Of each upload, as the attacker sees it."""
    flags: list[bool] = at_noise_floor(target.observe(indices).with_targets(found.targets), found.inputs).tolist()
    return flags


def _inverts_undefended(attack: Attack, target: Target, indices: list[int]) -> list[bool]:
    """Whether an attack's first start comes close to the samples of each upload where no noise hides them."""
    client = target.client
    undefended = Target.of(client, 0.0, target.labels_known, target.deadline)
    try:
        found = reconstruct(attack.first, undefended, indices)
    except AttackNotApplicable:
        # Nothing speaks against further starts then.
        return [True] * (len(indices) // client.upload_size)
    truth = client.batch(indices).inputs
    order = matched_order(found.inputs, truth, client.upload_size)
    squared = mean_squared_error(found.inputs[order], truth, texts=client.samples.tokens is not None)
    errors = squared.reshape(-1, client.upload_size).mean(1).sqrt()
    flags: list[bool] = (errors <= INVERTED_SHARE * client.chosen.info.std).tolist()
    return flags


def attack_rows(
    name: str, attack: Attack, target: Target, indices: list[int], metrics: Sequence[Metric], show: bool,
    effort: SearchEffort = "adaptive",
) -> list[AttackRow]:  # fmt: skip
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
        searched = search(attack, target, indices, effort)
    except AttackNotApplicable as reason:
        names = [metric.name for metric in metrics]
        return [_without_result(make, sample, names, "not_applicable", str(reason)) for sample in ids]
    truth, size = target.client.batch(indices).inputs, target.client.upload_size
    reconstruction = searched.reconstruction
    order = matched_order(reconstruction.inputs, truth, size)
    inputs, labels = reconstruction.inputs[order], reconstruction.targets[order]
    confidence = None if reconstruction.confidence is None else reconstruction.confidence[order].tolist()
    measured, originals = measure(metrics, inputs, truth), target.client.original_inputs(indices)
    against = None if originals is None else measure(metrics, inputs, originals)
    objectives = reconstruction.objective.tolist()
    told, words = tokens_told(target.client, inputs, truth, show)
    return [
        make(
            sample_id=sample,
            status=reconstruction.status[position // size],
            metrics=measured[position],
            original_metrics=None if against is None else against[position],
            objective=objectives[position // size] if np.isfinite(objectives[position // size]) else None,
            steps=int(reconstruction.steps[position // size]),
            restarts=searched.restarts[position // size],
            seconds=reconstruction.seconds / len(ids),
            ended_by=searched.ended_by[position // size],
            recovered_label=None if target.labels_known else int(labels[position]),
            confidence=None if confidence is None else confidence[position],
            image_png=image_png(inputs[position]) if show else None,
            tokens_right=None if told is None else told[position],
            tokens=None if words is None else words[position],
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
        model, encoding = client.release.model, client.samples.encoding
        subject = Subject(
            tuple(inputs.shape[1:]),
            span,
            model,
            upload_size=client.upload_size,
            encoding=encoding,
            texts=vocabulary_of(client),
        )
        of_client[names] = make_metrics(subject, names)
    return of_client[names]


def tokens_told(
    client: Client, reconstruction: Tensor, truth: Tensor, show: bool
) -> tuple[list[list[bool | None]] | None, list[list[str]] | None]:
    """Which tokens of embedded texts [B, T, E] are right, as `AttackRow` has it, and all of them in words on demand."""
    texts = vocabulary_of(client)
    if texts is None:
        return None, None
    guess, true, private = texts.tokens(reconstruction.to(truth)), texts.tokens(truth), texts.private(truth)
    lengths = real_positions(truth).sum(1).tolist()
    told: list[list[bool | None]] = [
        [bool(right) if counts else None for right, counts in zip(row, own, strict=True)][:length]
        for row, own, length in zip((guess == true).tolist(), private.tolist(), lengths, strict=True)
    ]
    reader = client.checkpoint.text
    if not show or reader is None:
        return told, None
    rows = zip(guess.tolist(), lengths, strict=True)
    return told, [[reader.word(number) for number in row[:length]] for row, length in rows]


def vocabulary_of(client: Client) -> TextVocabulary | None:
    """What a client's texts are told by; None where its samples are no texts."""
    tokens = client.samples.tokens
    if tokens is None:
        return None
    known = tokens.ids.new_zeros(tokens.ids.shape, dtype=torch.bool)
    if tokens.special is not None:
        known |= tokens.special
    if tokens.private is not None:
        known |= tokens.ids != tokens.private
    numbers = torch.unique(tokens.ids[known & (tokens.ids >= 0)])
    # Numbers as they are found again: the first of the tokens that are embedded alike.
    rows = tokens.vocabulary.double()
    nearest = torch.cdist(rows[numbers], rows).argmin(-1) if len(numbers) else numbers
    return TextVocabulary(tokens.vocabulary, nearest)


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
    effort: SearchEffort = "adaptive"

    @override
    def run(self, client: Client) -> list[dict[str, Any]]:
        with self.budget.of_trial(self.key):
            target = Target.of(client, self.noise_std, self.labels_known, self.budget.deadline)
            metrics = metrics_of(client, self.metrics)
            rows = attack_rows(
                self.name, self.attack, target, list(self.indices), metrics, self.show_samples, self.effort
            )
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
    effort: SearchEffort = "adaptive",
) -> list[AttackTrial]:
    """Every attack at every noise level on every batch of the usable samples, those of an upload together."""
    trials, parts = [], batches(len(usable), upload_size)
    for (level, noise_std), (name, attack), batch in product(levels.items(), attacks.items(), parts):
        indices = tuple(usable[position] for position in batch)
        key = f"{name} {level!r} {indices[0]}"
        shared = (labels_known, metrics, show_samples)
        trials.append(AttackTrial(key, name, attack, noise_std, indices, *shared, len(indices), budget, effort))
    return trials


def rows_of(results: Sequence[list[dict[str, Any]]]) -> list[AttackRow]:
    """The rows of finished attack trials."""
    return [AttackRow.model_validate(row) for result in results for row in result]


def batches(count: int, upload_size: int = 1) -> list[list[int]]:
    """Positions of samples that are attacked together: of whole uploads."""
    size = max(1, BATCH_SIZE // upload_size) * upload_size
    return [list(range(first, min(first + size, count))) for first in range(0, count, size)]
