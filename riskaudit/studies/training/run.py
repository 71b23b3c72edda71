"""``riskaudit study training``: how the leak changes from one checkpoint of a run to the next.

The same samples, release, prior and draws of the noise at every checkpoint. Beside the mean over samples stands the
most exposed one: training makes most gradients small, not all, so the least error can stay low while the mean rises
(Geng et al. 2021 and others attack single samples of trained networks). One trial is one checkpoint.

Gradients grow and shrink in training while noise doesn't: every checkpoint is judged at the noise of the release, and
at noise in the proportion to the median gradient norm that this has at the first one; one spectrum serves both. Attacks
made for what the client does are among those that run (`riskaudit.studies.adaptive`), and each stands by itself beside
the strongest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from typing_extensions import override

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import AuditedSamples, audit_client, audit_samples
from riskaudit.audit.client import Client, make_client
from riskaudit.engine import Trial, make_engine
from riskaudit.errors import CheckpointError, RiskauditError
from riskaudit.inputs import Checkpoint, Samples, load_checkpoint
from riskaudit.inputs.architectures.registry import shapes_of
from riskaudit.inputs.text import clean
from riskaudit.results import AuditResult
from riskaudit.statistics.groups import group_statistic
from riskaudit.statistics.rank_correlation import rank_correlation
from riskaudit.statistics.summaries import of_known
from riskaudit.studies.adaptive import with_adaptive
from riskaudit.studies.base import (
    ATTACKS,
    ModelComparison,
    StudyRun,
    attack_settings,
    compared,
    errors_at_noise_times,
    identity_of,
    measured,
    noise_level,
    released_norm,
)
from riskaudit.studies.rows import SampleRisk
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.training.record import MeanAndWorst, TrainingRow, TrainingStudy
from riskaudit.studies.training.snapshots import Snapshot, StepSource, checkpoint_files, order_of

CONFIDENCE = 0.95
# Samples whose class is looked up at once.
BATCH_SIZE = 256

Load = Callable[[Path], Checkpoint]
# Changes by less than this factor are called none.
SAME = 1.1
Use = TypeVar("Use")


def training_study(
    checkpoints: Sequence[str | Path],
    samples: Samples,
    settings: AuditSettings | None = None,
    run: StudyRun | None = None,
    *,
    load: Load = load_checkpoint,
    attacks: Sequence[str] = ATTACKS,
    notes: Sequence[str] = (),
) -> AuditResult:
    """Audit several checkpoints of one training run: files, or a folder of them (see `order_of`), which ``load`` reads.

    Args:
        checkpoints: files, or folders of them.
        samples: to audit.
        settings: of the audits.
        run: how the study is run.
        load: reads a checkpoint.
        attacks: where the run attacks; those made for the defence join them.
        notes: what else is to be said of the run.

    Returns:
        The audit of the last checkpoint that can be audited, with ``studies.training``. A checkpoint that can't
        be, or is of another architecture than that one, is a row with a reason.

    Raises:
        CheckpointError: none can be audited.
        RiskauditError: options out of range.
    """
    settings, run = settings or AuditSettings(), run or StudyRun()
    chosen = attack_settings(run.attacks, attacks, run.attack_steps)
    snapshots, source = order_of(checkpoint_files(checkpoints))
    with make_engine(run.workers) as engine:

        def audited(path: Path) -> tuple[Client, AuditResult]:
            client = make_client(load(path), samples, settings)
            return client, audit_client(client, engine, show_samples=run.show_samples, command=run.command)

        position, (client, result) = last_usable(snapshots, audited, RiskauditError, "audited")
        journal = run.journal(
            {
                "training": identity_of(client, chosen or AttackSettings(), [], False),
                "files": [[snapshot.path.name, snapshot.step, snapshot.sha256] for snapshot in snapshots],
                "attacked": chosen is not None,
            }
        )
        norm = first_norm(client, snapshots, load)
        study = Checkpoints(chosen, tuple(snapshots), source, position, load, norm, tuple(notes))
        return result.with_study(study.answer(client, engine, journal, run.progress))


@dataclass(frozen=True)
class Checkpoints(ModelComparison[TrainingStudy]):
    """Every checkpoint of a run, in its order, on the samples of the one at ``last``, which is the client's own.

    ``norm`` is the median gradient norm at the first one, see `first_norm`.
    """

    snapshots: tuple[Snapshot, ...]
    step_source: StepSource
    last: int
    load: Load
    norm: float | None
    notes: tuple[str, ...] = ()

    @override
    def models(self, client: Client) -> list[CheckpointTrial]:
        return [
            CheckpointTrial(
                f"{number} {snapshot.path.name}",
                snapshot,
                None if number == self.last else self.load,
                self.attacks,
                self.norm,
            )
            for number, snapshot in enumerate(self.snapshots)
        ]

    @override
    def compare(self, client: Client, results: Sequence[Any], shared: dict[str, Any]) -> TrainingStudy:
        rows = [TrainingRow.model_validate(row) for row in results]
        return summarise(rows, self.step_source, self.notes, **shared)


@dataclass(frozen=True)
class CheckpointTrial(Trial[Client]):
    """One checkpoint on the client's samples; gives a `TrainingRow` as plain data."""

    key: str
    snapshot: Snapshot
    load: Load | None
    attacks: AttackSettings | None
    norm: float | None

    @override
    def run(self, client: Client) -> dict[str, Any]:
        snapshot = self.snapshot
        row = TrainingRow(name=clean(snapshot.path.name), sha256=snapshot.sha256, step=snapshot.step)
        try:
            if self.load is not None:
                client = _client_at(snapshot, client, self.load)
            given = client.source
            attacks = None if self.attacks is None else with_adaptive(client, self.attacks, noise_level(client)[0])
            audited = audit_samples(compared(client))
            risks = measured(audited.rows, client, attacks)
            relative = _at_relative_noise(client, audited, self.norm)
        except RiskauditError as reason:
            return row.model_copy(update={"reason": clean(reason, 300)}).model_dump(mode="json")
        samples, seed = risks.samples, client.settings.seed
        fields = {
            "accuracy": accuracy(client.source.checkpoint.model, given.samples),
            "mean_loss": of_known(statistics.fmean, (each.loss for each in samples)),
            "median_gradient_norm": of_known(statistics.median, (each.gradient_norm for each in samples)),
            "posterior_rmse": _spread([(each.posterior_rmse.reliable, each.sample_id) for each in samples], seed, min),
            **relative,
            "revealed_fraction": _spread(
                [(each.revealed_fraction.reliable, each.sample_id) for each in samples], seed, max
            ),
            "attack_rmse": _spread([(each.attack_rmse, each.sample_id) for each in samples], seed, min),
            "attack_errors": _by_attack(samples, seed),
            "num_failed_samples": sum(risk.status == "failed" for risk in samples),
            "samples": samples,
            "attack_notes": risks.attack_notes,
        }
        return row.model_copy(update=fields).model_dump(mode="json")


def first_norm(client: Client, snapshots: Sequence[Snapshot], load: Load) -> float | None:
    """The median gradient norm at the first checkpoint that can be read; None where that is 0."""
    for snapshot in snapshots:
        try:
            return released_norm(_client_at(snapshot, client, load)) or None
        except RiskauditError:
            continue
    return None


def _client_at(snapshot: Snapshot, client: Client, load: Load) -> Client:
    """The client with the weights of a checkpoint.

    Raises:
        RiskauditError: they can't be read, or belong to another network.
    """
    checkpoint = load(snapshot.path)
    _check_same(checkpoint, client.source.checkpoint)
    return make_client(checkpoint, client.source.samples, client.settings)


def _at_relative_noise(client: Client, audited: AuditedSamples, norm: float | None) -> dict[str, Any]:
    """Fields of a row: the noise in proportion to the gradient's norm, and the posterior error there.

    Args:
        client: with the weights of the checkpoint.
        audited: at the release's own noise.
        norm: median gradient norm to which that noise belongs.
    """
    own = released_norm(client)
    if norm is None or not own:
        return {}
    factor = own / norm
    errors = errors_at_noise_times(compared(client), audited, factor)
    known = [(None if each is None else each.reliable, row.id) for each, row in zip(errors, audited.rows, strict=True)]
    return {
        "relative_noise_std": factor * noise_level(client)[0],
        "relative_rmse": _spread(known, client.settings.seed, min),
    }


def _by_attack(samples: Sequence[SampleRisk], seed: int) -> dict[str, MeanAndWorst]:
    """Errors of each attack over the samples on which it gave one."""
    names = dict.fromkeys(name for each in samples for name in each.attack_errors)
    spreads = {
        name: _spread([(each.attack_errors.get(name), each.sample_id) for each in samples], seed, min) for name in names
    }
    return {name: spread for name, spread in spreads.items() if spread is not None}


def _check_same(checkpoint: Checkpoint, like: Checkpoint) -> None:
    """Refuse weights of another network."""
    if shapes_of(checkpoint.model) != shapes_of(like.model):
        actual, expected = checkpoint.architecture, like.architecture
        what = f"{expected} with other sizes" if actual == expected else actual
        raise CheckpointError(f"expected {expected} as in {like.name}, found {what}; compare checkpoints of one run")


def _spread(pairs: Sequence[tuple[float | None, str]], seed: int, riskier: Callable[..., Any]) -> MeanAndWorst | None:
    measured = [(value, sample) for value, sample in pairs if value is not None]
    if not measured:
        return None
    statistic = group_statistic([value for value, _ in measured], confidence=CONFIDENCE, seed=seed)
    worst, sample = riskier(measured, key=lambda pair: pair[0])
    mean, low, high = statistic.mean, statistic.low, statistic.high
    return MeanAndWorst(mean=mean, low=low, high=high, worst=worst, worst_sample=sample, num_samples=len(measured))


def accuracy(model: nn.Module, samples: Samples) -> float | None:
    """Share of samples whose class the model finds; None where targets aren't classes or outputs not one per class."""
    if samples.targets.ndim != 1 or samples.targets.is_floating_point():
        return None
    parameter = next(model.parameters())
    right = 0
    for first in range(0, len(samples), BATCH_SIZE):
        with torch.no_grad():
            outputs = model(samples.inputs[first : first + BATCH_SIZE].to(parameter))
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            return None
        right += int((outputs.argmax(-1).cpu() == samples.targets[first : first + BATCH_SIZE]).sum())
    return right / len(samples)


def summarise(
    rows: Sequence[TrainingRow], step_source: StepSource = "position", said: Sequence[str] = (), **shared: Any
) -> TrainingStudy:
    """What became of the mean and of the most exposed sample; ``shared`` are the fields of `ModelsStudy`.

    ``said`` are notes on the run.
    """
    measured = [(row.accuracy, row.posterior_rmse) for row in rows if row.posterior_rmse is not None]
    reached = [share for share, _ in measured if share is not None]
    mean_trend = worst_trend = None
    if len(reached) == len(measured):
        mean_trend = rank_correlation(reached, [error.mean for _, error in measured]).spearman
        worst_trend = rank_correlation(reached, [error.worst for _, error in measured]).spearman
    source = {
        "file name": "the last number of the file name",
        "checkpoint": "the step or epoch stored in the file",
        "position": "the position among the files",
    }[step_source]
    notes = [*said, f"step: {source}"]
    if shared["reference_noise"]:
        notes.append("the release is undefended: predictions and attacks are at the reference noise")
    if any(row.accuracy is not None for row in rows):
        notes.append("accuracy is on the audited samples, which may be few and may have been trained on")
    if any(risk.posterior_rmse.status == "bracketed" for row in rows for risk in row.samples):
        notes.append("posterior errors are the middles of certified intervals")
    return TrainingStudy(
        **shared,
        step_source=step_source,
        rows=list(rows),
        summary=summary(rows, shared["prior_rmse"]),
        mean_trend=mean_trend,
        worst_trend=worst_trend,
        notes=notes + list(dict.fromkeys(note for row in rows for note in row.attack_notes)),
    )


def summary(rows: Sequence[TrainingRow], prior_rmse: float) -> str:
    """One sentence on the mean and the least posterior error from the first checkpoint to the last."""
    measured = [(row.step, row.posterior_rmse) for row in rows if row.posterior_rmse is not None]
    if len(measured) < 2:
        return "Fewer than two checkpoints could be audited, so nothing can be said of training."
    (start, first), (end, last) = measured[0], measured[-1]
    mean, worst = _change(first.mean, last.mean), _change(first.worst, last.worst)
    text = (
        f"From step {start} to {end} the mean posterior error {mean} ({first.mean:.3g} to {last.mean:.3g}), that of "
        f"the most exposed sample {worst} ({first.worst:.3g} to {last.worst:.3g})"
    )
    if mean == "rises" and worst != "rises":
        return f"{text}: the mean hides samples that training does not protect."
    if last.worst < last.mean / 2 and last.worst < prior_rmse / 2:
        return f"{text}; the error of the most exposed sample is less than half the mean."
    return f"{text}."


def _change(before: float, after: float) -> str:
    return "rises" if after > before * SAME else "falls" if after * SAME < before else "stays"


def last_usable(
    snapshots: Sequence[Snapshot], use: Callable[[Path], Use], errors: type[Exception] | tuple[type[Exception], ...],
    done: str,
) -> tuple[int, Use]:  # fmt: skip
    """Position of the last checkpoint that can be ``done`` (read, audited), and what ``use`` makes of it.

    Raises:
        CheckpointError: there is none.
    """
    reason: Exception | None = None
    for position in reversed(range(len(snapshots))):
        try:
            return position, use(snapshots[position].path)
        except errors as error:
            reason = reason or error
    assert reason is not None
    if len(snapshots) == 1:
        raise reason
    raise CheckpointError(f"none of the {len(snapshots)} checkpoints can be {done} (the last: {reason})") from reason
