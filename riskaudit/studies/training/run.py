"""``riskaudit study training``: how the leak changes from one checkpoint of a run to the next.

The same samples, release, prior and draws of the noise at every checkpoint. Beside the mean over samples stands the
most exposed one: training makes most gradients small, not all, so the least error can stay low while the mean rises
(Geng et al. 2021 and others attack single samples of trained networks). One trial is one checkpoint.

The checkpoints of a run are ordered by the step in their names, else by the one stored in them, else as given.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_client
from riskaudit.audit.client import Client, make_client
from riskaudit.engine import Trial, make_engine
from riskaudit.errors import CheckpointError, RiskauditError
from riskaudit.files import sha256_of_file
from riskaudit.inputs import Checkpoint, Samples, load_checkpoint
from riskaudit.inputs.architectures.registry import shapes_of
from riskaudit.inputs.exported.archive import is_exported
from riskaudit.inputs.readers.archives import checked_members, is_zip
from riskaudit.inputs.readers.torch_files import read_torch_file, starts_like_pickle
from riskaudit.inputs.text import clean
from riskaudit.results import AuditResult
from riskaudit.statistics.groups import group_statistic
from riskaudit.statistics.rank_correlation import rank_correlation
from riskaudit.statistics.summaries import of_known
from riskaudit.studies.base import ATTACKS, ModelComparison, StudyRun, attack_settings, identity_of, measure
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.training.record import MeanAndWorst, TrainingRow, TrainingStudy

CONFIDENCE = 0.95
# Samples whose class is looked up at once.
BATCH_SIZE = 256

Load = Callable[[Path], Checkpoint]
# Changes by less than this factor are called none.
SAME = 1.1
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pt2")
STEP_ENTRIES = ("step", "global_step", "epoch")
Use = TypeVar("Use")
StepSource = Literal["file name", "checkpoint", "position"]


def training_study(
    checkpoints: Sequence[str | Path],
    samples: Samples,
    settings: AuditSettings | None = None,
    run: StudyRun | None = None,
    *,
    load: Load = load_checkpoint,
    attacks: Sequence[str] = ATTACKS,
) -> AuditResult:
    """Audit several checkpoints of one training run: files, or a folder of them (see `order_of`), which ``load`` reads.

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
        study = Checkpoints(chosen, tuple(snapshots), source, position, load)
        return result.with_study(study.answer(client, engine, journal, run.progress))


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
            CheckpointTrial(
                f"{number} {snapshot.path.name}",
                snapshot,
                None if number == self.last else self.load,
                self.attacks,
            )
            for number, snapshot in enumerate(self.snapshots)
        ]

    @override
    def compare(self, client: Client, results: Sequence[Any], shared: dict[str, Any]) -> TrainingStudy:
        return summarise([TrainingRow.model_validate(row) for row in results], self.step_source, **shared)


@dataclass(frozen=True)
class CheckpointTrial(Trial[Client]):
    """One checkpoint on the client's samples; gives a `TrainingRow` as plain data."""

    key: str
    snapshot: Snapshot
    load: Load | None
    attacks: AttackSettings | None

    @override
    def run(self, client: Client) -> dict[str, Any]:
        snapshot = self.snapshot
        row = TrainingRow(name=clean(snapshot.path.name), sha256=snapshot.sha256, step=snapshot.step)
        try:
            given = client.source
            if self.load is not None:
                checkpoint = self.load(snapshot.path)
                _check_same(checkpoint, given.checkpoint)
                client = make_client(checkpoint, given.samples, client.settings)
            risks = measure(client, self.attacks)
        except RiskauditError as reason:
            return row.model_copy(update={"reason": clean(reason, 300)}).model_dump(mode="json")
        samples, seed = risks.samples, client.settings.seed
        fields = {
            "accuracy": accuracy(client.source.checkpoint.model, given.samples),
            "mean_loss": of_known(statistics.fmean, (each.loss for each in samples)),
            "median_gradient_norm": of_known(statistics.median, (each.gradient_norm for each in samples)),
            "posterior_rmse": _spread([(each.posterior_rmse.reliable, each.sample_id) for each in samples], seed, min),
            "revealed_fraction": _spread(
                [(each.revealed_fraction.reliable, each.sample_id) for each in samples], seed, max
            ),
            "attack_rmse": _spread([(each.attack_rmse, each.sample_id) for each in samples], seed, min),
            "num_failed_samples": sum(risk.status == "failed" for risk in samples),
            "samples": samples,
            "attack_notes": risks.attack_notes,
        }
        return row.model_copy(update=fields).model_dump(mode="json")


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


def summarise(rows: Sequence[TrainingRow], step_source: StepSource = "position", **shared: Any) -> TrainingStudy:
    """What became of the mean and of the most exposed sample; ``shared`` are the fields of `ModelsStudy`."""
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


@dataclass(frozen=True)
class Snapshot:
    """One checkpoint file of a run."""

    path: Path
    step: int

    @cached_property
    def sha256(self) -> str | None:
        """Of the file; None where it can't be read."""
        try:
            return sha256_of_file(self.path)
        except OSError:
            return None


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts names with numbers as a reader would: step 9 before step 10."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def checkpoint_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, a folder standing for the checkpoint files in it in natural order.

    Raises:
        CheckpointError: a folder without any, or nothing named.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        try:
            entries = [entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file()]
        except OSError as cause:
            raise CheckpointError(f"can't read the folder {clean(path)} ({clean(cause.strerror or cause)})") from cause
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        if not entries:
            raise CheckpointError(f"expected checkpoints ({', '.join(SUFFIXES)}) in {clean(path)}, found none")
        files += sorted(entries, key=lambda entry: natural_key(entry.name))
    if not files:
        raise CheckpointError("expected at least one checkpoint file or a folder of them, found none")
    return list(dict.fromkeys(files))


def order_of(files: Sequence[Path]) -> tuple[list[Snapshot], StepSource]:
    """The files in the order of training.

    The step is the last number in a file's name; where some name has none or two have the same, the files' own
    entries (`STEP_ENTRIES`); else the position among the files as they were given.
    """
    named = [_step_in_name(path) for path in files]
    if len(set(named) - {None}) == len(files):
        return _sorted(files, named), "file name"
    stored = [_step_in_file(path) for path in files]
    if len(set(stored) - {None}) == len(files):
        return _sorted(files, stored), "checkpoint"
    return [Snapshot(path, position) for position, path in enumerate(files)], "position"


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


def _sorted(files: Sequence[Path], steps: Sequence[int | None]) -> list[Snapshot]:
    snapshots = [Snapshot(path, step) for path, step in zip(files, steps, strict=True) if step is not None]
    return sorted(snapshots, key=lambda snapshot: snapshot.step)


def _step_in_name(path: Path) -> int | None:
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers and len(numbers[-1]) < 18 else None


def _step_in_file(path: Path) -> int | None:
    """A step that a training loop stored beside the weights; None where there is none or the file is broken."""
    try:
        if is_zip(path):
            if is_exported(checked_members(path, CheckpointError, compressed=False)):
                return None
        elif not starts_like_pickle(path):
            return None
        content = read_torch_file(path, CheckpointError)
    except (RiskauditError, OSError, MemoryError):
        return None
    values = [content.get(name) for name in STEP_ENTRIES] if isinstance(content, Mapping) else []
    for value in values:
        number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
            return number
    return None
