"""`audit`: every proxy for every sample of a release, and what they say together."""

from __future__ import annotations

import logging
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import scipy
import torch
from torch import nn

from riskaudit.audit.alarm import is_cross_entropy, loss_alarm
from riskaudit.audit.calibration import make_calibrator
from riskaudit.audit.checks import is_out_of_memory, refuse_if_all_failed
from riskaudit.audit.client import Victim, make_victim
from riskaudit.audit.notes import concentration_notes, loss_note, separate_note, threat_model, warnings_of
from riskaudit.audit.plan import choose_plan, samples_at_once
from riskaudit.audit.recognition import doubt_of, without_protective_claims
from riskaudit.audit.rows import BatchOf, BatchRows, RowMaker, audit_batch, image_png, target_kind
from riskaudit.audit.settings import AuditSettings
from riskaudit.audit.summaries import noise_curve, noise_needed
from riskaudit.audit.targets import CARRIED, carrying_targets
from riskaudit.errors import ArchitectureError, SettingsError
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.inputs.discrete import SPARSE_CODES, are_sparse_codes
from riskaudit.jacobian import obstacle_of
from riskaudit.proxies import PROXIES
from riskaudit.release import Release
from riskaudit.release.shares import shares_of
from riskaudit.results import (
    AuditResult,
    CheckpointInfo,
    Cost,
    DataInfo,
    NoiseInfo,
    ReleaseInfo,
    Settings,
    Thresholds,
    Tool,
)
from riskaudit.sensitivity import Clock
from riskaudit.statistics.summaries import class_rows, inequalities
from riskaudit.version import __version__

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
# Samples over which a loss of the user's own is compared with the mean of their losses.
COMPARED = 16


def audit(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    settings: AuditSettings | None = None,
    *,
    show_samples: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
    **options: object,
) -> AuditResult:
    """Audit what the release of each sample gives away.

    Args:
        checkpoint: from `load_checkpoint`, or a module in memory.
        samples: from `load_samples` or `Samples.from_tensors`.
        settings: all options at once.
        show_samples: put the private images, and targets that aren't class numbers, into the result. Off, no
            input leaves this function.
        command: the command line that reproduces the audit, for the record.
        progress: called as ``progress(done, total)`` after every batch.
        **options: fields of `AuditSettings`, e.g. ``release="clip:1.0,gaussian:0.01"``.

    Raises:
        RiskauditError: the model, data and options don't fit; the message says what to change.
    """
    victim = make_victim(checkpoint, samples, _settings(settings, options))
    return audit_victim(victim, show_samples=show_samples, command=command, progress=progress)


def audit_victim(
    victim: Victim, *, show_samples: bool = False, command: str | None = None, progress: Progress | None = None
) -> AuditResult:
    """`audit` of a client that was checked already.

    Raises:
        RiskauditError: see `audit`.
    """
    started = time.perf_counter()
    settings, samples, checkpoint = victim.settings, victim.samples, victim.checkpoint
    release, chosen, device = victim.release, victim.chosen, victim.device
    calibrator = None if settings.calibration is None else make_calibrator(settings.calibration, victim)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    defended = release.noise is not None
    jacobian = victim.jacobian(victim.noisy)
    width = samples_at_once(settings.batch_size, jacobian, device)
    plan = choose_plan(settings, samples.inputs[0].numel(), release.num_entries, len(samples), width, device)
    thresholds = Thresholds(high=settings.high, medium=settings.medium)
    target_rmse = chosen.info.std / 2 if settings.target_rmse is None else settings.target_rmse
    disclosed = {
        place: CARRIED for place, carries in enumerate(carrying_targets(samples.inputs, samples.targets)) if carries
    }
    maker = RowMaker(
        jacobian, defended, chosen.prior, plan, thresholds, target_rmse, settings.tolerances, settings.seed, calibrator,
        disclosed,
    )  # fmt: skip
    done = _all_rows(maker, victim, show_samples, progress)
    refuse_if_all_failed(done.rows)
    doubt = doubt_of(victim)
    rows, information = done.rows, done.information
    if doubt is not None:
        # The gradients of another function say nothing of the noise that the true ones need.
        rows, information = without_protective_claims(rows), []
    data = _data_info(samples)
    if data.doubt is not None:
        rows, information = without_protective_claims(rows, SPARSE_CODES), []
    return AuditResult(
        tool=Tool(version=__version__),
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        command=command,
        versions=_versions(),
        checkpoint=CheckpointInfo(
            name=checkpoint.name,
            sha256=checkpoint.sha256,
            architecture=checkpoint.architecture,
            num_parameters=checkpoint.num_parameters,
            assumed=checkpoint.assumed,
            doubt=doubt,
        ),
        data=data,
        release=_release_info(release, settings),
        threat_model=threat_model(checkpoint.model),
        prior=chosen.info,
        settings=_settings_info(settings, maker, checkpoint, victim.loss.name, device),
        cost=Cost(
            seconds=round(time.perf_counter() - started, 3),
            matvecs=done.matvecs,
            peak_memory_bytes=_peak_memory(device),
        ),
        proxies=[proxy.info(_missing_reason(name, done)) for name, proxy in PROXIES.items()],
        samples=rows,
        classes=class_rows(rows, samples.class_names, settings.seed),
        fairness=inequalities(rows),
        noise_curve=noise_curve(information),
        noise_needed=noise_needed(
            rows,
            # Noise would be enough for the mean over all coordinates, not for those that the release depends on.
            [] if any(row.concentration > 1 for row in rows) else information,
            settings.revealed_limits(chosen.info.std),
            # With one prior for all coordinates the limit says the same.
            {} if settings.prior == "isotropic" else settings.least_errors(chosen.info.std),
        ),
        calibration=None if calibrator is None else calibrator.info,
        warnings=[
            *(one for one in (doubt, data.doubt) if one is not None),
            *chosen.warnings,
            *_alarm(victim, done),
            *separate_note(done.separate, len(done.rows)),
            *_loss_note(victim),
            *concentration_notes(rows, done.uneven, thresholds),
            *warnings_of(checkpoint, samples, settings, release, done.rows),
        ],
    )


@torch.no_grad()
def _alarm(victim: Victim, done: BatchRows) -> list[str]:
    """What the samples' mean loss says of the model."""
    classes = None
    if is_cross_entropy(victim.loss) and not victim.samples.targets.is_floating_point():
        outputs = victim.release.run(victim.release.parameters, victim.batch([0]).inputs)
        classes = outputs.shape[1] if outputs.ndim > 1 else None
    losses = [row.loss for row in done.rows if isinstance(row.loss, float)]
    return loss_alarm(losses, classes, victim.checkpoint.training_loss)


@torch.no_grad()
def _loss_note(victim: Victim) -> list[str]:
    """Where a loss of the user's own, over the first samples as a batch, isn't the mean of their losses."""
    if victim.loss.kind != "custom" or len(victim.samples) < 2:
        return []
    batch = victim.batch(list(range(min(len(victim.samples), COMPARED))))
    try:
        shares = shares_of(victim.loss, victim.release.run(victim.release.parameters, batch.inputs), batch.targets)
    except Exception:  # a function that was written for one sample at a time needn't take several
        return []
    return loss_note(shares, victim.loss.name)


def _settings(settings: AuditSettings | None, options: dict[str, object]) -> AuditSettings:
    known = AuditSettings.__dataclass_fields__
    for name in options:
        if name not in known:
            raise SettingsError(f"expected options {', '.join(known)}, found {name!r}")
    return replace(settings or AuditSettings(), **options)  # type: ignore[arg-type]


def _all_rows(maker: RowMaker, victim: Victim, show_samples: bool, progress: Progress | None) -> BatchRows:
    total = BatchRows([])
    samples, budget = victim.samples, victim.settings.budget
    size, started = maker.plan.width, time.monotonic()
    for first in range(0, len(samples), size):
        indices = list(range(first, min(first + size, len(samples))))
        images = [image_png(samples.inputs[index]) if show_samples else None for index in indices]
        batch = BatchOf(victim.batch(indices), indices, [samples.ids[index] for index in indices], images, show_samples)
        clock = Clock()
        if budget is not None:
            # Every sample gets the same share of what is left.
            left = budget - (time.monotonic() - started)
            clock = Clock(max(0.0, left) * len(indices) / (len(samples) - first))
        try:
            part = _batch_rows(maker, batch, clock)
        except (MemoryError, RuntimeError) as error:
            obstacle = obstacle_of(error)
            if obstacle is not None:
                raise ArchitectureError(obstacle) from error
            if not is_out_of_memory(error):
                raise
            raise SettingsError(
                f"out of memory with {len(indices)} samples at once; lower --batch-size, or choose --solver lanczos"
            ) from error
        total.extend(part)
        if progress is not None:
            progress(len(total.rows), len(samples))
    return total


def _batch_rows(maker: RowMaker, batch: BatchOf, clock: Clock) -> BatchRows:
    """By the chosen Jacobian, or where it can't run what the first samples didn't reach, by plain autograd."""
    try:
        return audit_batch(maker, batch, clock)
    except (NotImplementedError, RuntimeError) as error:
        if is_out_of_memory(error) or maker.jacobian.kind != "generic":
            raise
        log.warning("some samples take a path that can't be differentiated together; doing them one by one")
        return audit_batch(replace(maker, jacobian=replace(maker.jacobian, plain=True)), batch, clock)


def _missing_reason(name: str, done: BatchRows) -> str | None:
    """Why a proxy lacks values, if some sample that was audited has none."""
    audited = [row for row in done.rows if row.status != "failed"]
    if all(row.proxies[name].value is not None or row.proxies[name].assessed for row in audited):
        return None
    return done.reasons.get(name)


def _data_info(samples: Samples) -> DataInfo:
    return DataInfo(
        name=samples.name,
        sha256=samples.sha256,
        num_samples=len(samples),
        input_shape=list(samples.inputs.shape[1:]),
        input_range=[float(samples.inputs.min()), float(samples.inputs.max())],
        class_names=list(samples.class_names) if samples.class_names is not None else None,
        target_kind=target_kind(samples.targets[0]),
        doubt=SPARSE_CODES if are_sparse_codes(samples.inputs) else None,
    )


def _release_info(release: Release, settings: AuditSettings) -> ReleaseInfo:
    noise = release.noise
    return ReleaseInfo(
        steps=release.spec.names,
        spec=str(release.spec),
        noise=None if noise is None else NoiseInfo(law=noise.law, std=noise.std),
        defended=noise is not None,
        coupling=release.coupling,
        reference_noise_std=settings.reference_noise if noise is None else None,
    )


def _settings_info(
    settings: AuditSettings, maker: RowMaker, checkpoint: Checkpoint, loss: str, device: torch.device
) -> Settings:
    plan = maker.plan
    return Settings(
        seed=settings.seed,
        device=str(device),
        dtype=settings.dtype,
        solver=plan.solver,
        inverse=plan.inverse,
        solver_reason=plan.solver_reason,
        inverse_reason=plan.inverse_reason,
        loss=loss,
        batch_size=plan.width,
        tolerance=settings.solver_tolerance,
        max_matvecs=plan.max_matvecs,
        precision=settings.precision,
        budget_seconds=settings.budget,
        jacobian=maker.jacobian.kind,
        jacobian_reason=maker.jacobian.reason,
        confidence=settings.confidence,
        target_rmse=maker.target_rmse,
        thresholds=maker.thresholds,
        normalization_mean=checkpoint.normalization_mean,
        normalization_std=checkpoint.normalization_std,
    )


def _versions() -> dict[str, str]:
    return {
        "riskaudit": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": str(np.__version__),
        "scipy": str(scipy.__version__),
    }


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
