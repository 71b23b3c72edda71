"""``riskaudit study training``: how the leak changes from one checkpoint of a run to the next.

The same samples, release, prior and draws of the noise at every checkpoint. Beside the mean over samples stands the
most exposed one: training makes most gradients small, not all, so the least error can stay low while the mean rises
(Geng et al. 2021 and others attack single samples of trained networks). One trial is one checkpoint.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_client
from riskaudit.audit.client import Client, make_client
from riskaudit.engine import Engine, Trial, make_engine
from riskaudit.errors import CheckpointError, RiskauditError
from riskaudit.files import sha256_of_file
from riskaudit.inputs import Checkpoint, Samples, load_checkpoint
from riskaudit.inputs.text import clean
from riskaudit.results import AuditResult
from riskaudit.statistics.groups import group_statistic
from riskaudit.statistics.rank_correlation import rank_correlation
from riskaudit.studies.base import StudyRun, identity_of
from riskaudit.studies.measuring import ATTACKS, ModelComparison, attack_settings, measure
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.training.record import MeanAndWorst, TrainingRow, TrainingStudy
from riskaudit.studies.training.series import Snapshot, StepSource, checkpoint_files, order_of

CONFIDENCE = 0.95
# Samples whose class is looked up at once.
BATCH_SIZE = 256

Load = Callable[[Path], Checkpoint]


def training_study(
    checkpoints: Sequence[str | Path],
    samples: Samples,
    settings: AuditSettings | None = None,
    run: StudyRun | None = None,
    *,
    load: Load = load_checkpoint,
    attacks: Sequence[str] = ATTACKS,
) -> AuditResult:
    """Audit several checkpoints of one training run.

    Args:
        checkpoints: files, or a folder of them; see `order_of` for their order.
        samples: see `audit`.
        settings: of every audit.
        run: whether attacks run, where trials are kept, progress.
        load: reads one file.
        attacks: to run where the run asks for attacks.

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
        position, client, result = _last(snapshots, samples, settings, load, run, engine)
        journal = run.journal(
            {
                "training": identity_of(client, chosen or AttackSettings(), [], False),
                "files": [[snapshot.path.name, snapshot.step, _sha256(snapshot.path)] for snapshot in snapshots],
                "attacked": chosen is not None,
            }
        )
        study = Checkpoints(chosen, tuple(snapshots), source, position, load)
        return result.with_study(study.answer(client, engine, journal, run.progress))


def _last(
    snapshots: Sequence[Snapshot], samples: Samples, settings: AuditSettings, load: Load, run: StudyRun, engine: Engine
) -> tuple[int, Client, AuditResult]:
    """Position of the last checkpoint that can be audited, a client of it, and its audit."""
    reason: RiskauditError | None = None
    for position in reversed(range(len(snapshots))):
        try:
            client = make_client(load(snapshots[position].path), samples, settings)
            result = audit_client(client, engine, show_samples=run.show_samples, command=run.command)
            return position, client, result
        except RiskauditError as error:
            reason = reason or error
    assert reason is not None
    if len(snapshots) == 1:
        raise reason
    raise CheckpointError(f"none of the {len(snapshots)} checkpoints can be audited (the last: {reason})") from reason


@dataclass(frozen=True)
class Checkpoints(ModelComparison[TrainingStudy]):
    """Every checkpoint of a run, in its order, on the samples of the one at ``last``, which is the client's own."""

    snapshots: tuple[Snapshot, ...]
    step_source: StepSource
    last: int
    load: Load

    @override
    def models(self, client: Client) -> list[CheckpointTrial]:
        return [
            CheckpointTrial(number, snapshot, None if number == self.last else self.load, self.attacks)
            for number, snapshot in enumerate(self.snapshots)
        ]

    @override
    def compare(self, client: Client, results: Sequence[Any], shared: dict[str, Any]) -> TrainingStudy:
        return summarise([TrainingRow.model_validate(row) for row in results], self.step_source, **shared)


@dataclass(frozen=True)
class CheckpointTrial(Trial[Client]):
    """One checkpoint on the client's samples; gives a `TrainingRow` as plain data."""

    number: int
    snapshot: Snapshot
    load: Load | None
    attacks: AttackSettings | None

    @property
    @override
    def key(self) -> str:
        return f"{self.number} {self.snapshot.path.name}"

    @override
    def run(self, client: Client) -> dict[str, Any]:
        row = TrainingRow(
            name=clean(self.snapshot.path.name), sha256=_sha256(self.snapshot.path), step=self.snapshot.step
        )
        try:
            given = client.source
            if self.load is not None:
                checkpoint = self.load(self.snapshot.path)
                _check_same(checkpoint, given.checkpoint)
                client = make_client(checkpoint, given.samples, client.settings)
            risks = measure(client, self.attacks)
        except RiskauditError as reason:
            return row.model_copy(update={"reason": clean(reason, 300)}).model_dump(mode="json")
        share = accuracy(client.source.checkpoint.model, given.samples)
        samples = risks.samples
        losses = [risk.loss for risk in samples if risk.loss is not None]
        norms = [risk.gradient_norm for risk in samples if risk.gradient_norm is not None]
        errors = {risk.sample_id: risk.posterior_rmse.reliable for risk in samples}
        revealed = {risk.sample_id: risk.revealed_fraction.reliable for risk in samples}
        attacked = {risk.sample_id: risk.attack_rmse for risk in samples}
        return row.model_copy(
            update={
                "accuracy": share,
                "mean_loss": statistics.fmean(losses) if losses else None,
                "median_gradient_norm": statistics.median(norms) if norms else None,
                "posterior_rmse": _spread(errors, client.settings.seed, riskier=min),
                "revealed_fraction": _spread(revealed, client.settings.seed, riskier=max),
                "attack_rmse": _spread(attacked, client.settings.seed, riskier=min),
                "num_failed_samples": sum(risk.status == "failed" for risk in samples),
                "samples": samples,
                "attack_notes": risks.attack_notes,
            }
        ).model_dump(mode="json")


def _sha256(path: Path) -> str | None:
    try:
        return sha256_of_file(path)
    except OSError:
        return None


def _check_same(checkpoint: Checkpoint, like: Checkpoint) -> None:
    """Refuse weights of another network."""
    shapes = [
        {name: tuple(value.shape) for name, value in each.model.state_dict().items()} for each in (checkpoint, like)
    ]
    if shapes[0] == shapes[1]:
        return
    actual, expected = checkpoint.architecture, like.architecture
    what = f"{expected} with other sizes" if actual == expected else actual
    raise CheckpointError(f"expected {expected} as in {like.name}, found {what}; compare checkpoints of one run")


def _spread(values: dict[str, float | None], seed: int, riskier: Callable[..., str]) -> MeanAndWorst | None:
    known = {sample: value for sample, value in values.items() if value is not None}
    if not known:
        return None
    statistic = group_statistic(list(known.values()), confidence=CONFIDENCE, seed=seed)
    worst = riskier(known, key=lambda sample: known[sample])
    return MeanAndWorst(
        mean=statistic.mean,
        low=statistic.low,
        high=statistic.high,
        worst=known[worst],
        worst_sample=worst,
        num_samples=len(known),
    )


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


def summarise(rows: Sequence[TrainingRow], step_source: StepSource = "position", **shared: Any) -> TrainingStudy:
    """What became of the mean and of the most exposed sample; ``shared`` are the fields of `ModelsStudy`."""
    known = [(row.accuracy, row.posterior_rmse) for row in rows if row.posterior_rmse is not None]
    reached = [one for one, _ in known if one is not None]
    mean_trend = worst_trend = None
    if len(reached) == len(known):
        mean_trend = rank_correlation(reached, [error.mean for _, error in known]).spearman
        worst_trend = rank_correlation(reached, [error.worst for _, error in known]).spearman
    source = {
        "file name": "the last number of the file name",
        "checkpoint": "the step or epoch stored in the file",
        "position": "the position among the files",
    }[step_source]
    notes = [f"step: {source}"]
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


# Changes by less than this factor are called none.
SAME = 1.1


def summary(rows: Sequence[TrainingRow], prior_rmse: float) -> str:
    """One sentence on the mean and the least posterior error from the first checkpoint to the last."""
    known = [(row.step, row.posterior_rmse) for row in rows if row.posterior_rmse is not None]
    if len(known) < 2:
        return "Fewer than two checkpoints could be audited, so nothing can be said of training."
    (start, first), (end, last) = known[0], known[-1]
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
    if after > before * SAME:
        return "rises"
    return "falls" if after * SAME < before else "stays"
