"""`audit`: every proxy for every sample of a release, and what they say together."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime

import torch
from torch import nn

from riskaudit.audit.alarm import is_cross_entropy, loss_alarm
from riskaudit.audit.checks import refuse_if_all_failed
from riskaudit.audit.client import Client, make_client
from riskaudit.audit.leaks import check_leaks
from riskaudit.audit.notes import concentration_notes, loss_note, separate_note, threat_model, warnings_of
from riskaudit.audit.provenance import (
    checkpoint_info,
    data_info,
    peak_memory,
    release_info,
    settings_info,
    versions,
)
from riskaudit.audit.recognition import doubt_of, without_protective_claims
from riskaudit.audit.rows import BatchRows
from riskaudit.audit.settings import AuditSettings
from riskaudit.audit.shards import audit_shards, plan_audit
from riskaudit.audit.summaries import noise_curve, noise_needed
from riskaudit.engine import Engine, Progress, SerialEngine, make_engine
from riskaudit.errors import SettingsError
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.inputs.discrete import SPARSE_CODES
from riskaudit.proxies import proxies_for
from riskaudit.release.shares import shares_of
from riskaudit.results import AuditResult, Cost, NoiseNeed, SampleRow, Tool
from riskaudit.results.verdicts import headline_of
from riskaudit.sensitivity import Information
from riskaudit.statistics.summaries import class_rows, inequalities
from riskaudit.version import __version__

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
    workers: int = 1,
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
        workers: processes that batches are spread over; results don't depend on it.
        **options: fields of `AuditSettings`, e.g. ``release="clip:1.0,gaussian:0.01"``.

    Raises:
        RiskauditError: the model, data and options don't fit; the message says what to change.
    """
    with make_engine(workers) as engine:
        client = make_client(checkpoint, samples, _settings(settings, options))
        return audit_client(client, engine, show_samples=show_samples, command=command, progress=progress)


def audit_client(
    client: Client,
    engine: Engine | None = None,
    *,
    noise_std: float | None = None,
    show_samples: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> AuditResult:
    """`audit` of a client that was checked already.

    Args:
        client: what is audited.
        engine: where; one batch after the other in this process unless told otherwise.
        noise_std: of its release, as `Client.at_noise` takes it.
        show_samples: see `audit`.
        command: see `audit`.
        progress: see `audit`.

    Raises:
        RiskauditError: see `audit`.
    """
    started, engine = time.perf_counter(), engine or SerialEngine()
    if client.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(client.device)
    plan = plan_audit(client, noise_std, engine.workers, show_samples)
    audited = BatchRows()
    for part in engine.map(audit_shards(client, plan), client, progress=progress):
        audited.extend(part)
    refuse_if_all_failed(audited.rows)
    client = client.at_noise(noise_std)
    samples, settings = client.samples, client.settings
    doubt, data = doubt_of(client), data_info(samples)
    rows, information = _defensible(audited, doubt, data.doubt)
    doubts = [reason for reason in (doubt, data.doubt) if reason is not None]
    return AuditResult(
        tool=Tool(version=__version__),
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        command=command,
        versions=versions(),
        checkpoint=checkpoint_info(client.checkpoint, doubt),
        data=data,
        release=release_info(client),
        threat_model=threat_model(client),
        prior=client.chosen.info,
        settings=settings_info(client, plan.solvers),
        cost=Cost(
            seconds=round(time.perf_counter() - started, 3),
            matvecs=audited.matvecs,
            peak_memory_bytes=peak_memory(client.device),
        ),
        proxies=[
            proxy.info(_missing_reason(name, audited)) for name, proxy in proxies_for(joint=client.is_joint).items()
        ],
        samples=rows,
        classes=class_rows(rows, samples.class_names, settings.seed),
        fairness=inequalities(rows),
        noise_curve=noise_curve(information),
        noise_needed=_noise_needed(client, rows, information),
        checks=check_leaks(client),
        calibration=None if plan.calibrator is None else plan.calibrator.info,
        warnings=[*doubts, *_warnings(client, audited, rows)],
    )


def _defensible(
    audited: BatchRows, doubt: str | None, data_doubt: str | None
) -> tuple[list[SampleRow], list[Information]]:
    """Rows and what releases tell, without what would protect where the model or the data are doubted."""
    rows, information = audited.rows, audited.information
    if doubt is not None:
        # The gradients of another function say nothing of the noise that the true ones need.
        rows, information = without_protective_claims(rows), []
    if data_doubt is not None:
        rows, information = without_protective_claims(rows, SPARSE_CODES), []
    return rows, information


def _noise_needed(client: Client, rows: list[SampleRow], information: list[Information]) -> list[NoiseNeed]:
    settings, prior_std = client.settings, client.chosen.info.std
    return noise_needed(
        rows,
        # Noise would be enough for the mean over all coordinates, not for those that the release depends on.
        [] if any(row.concentration > 1 for row in rows) else information,
        settings.revealed_limits(prior_std),
        # With one prior for all coordinates the limit says the same.
        {} if settings.prior == "isotropic" else settings.least_errors(prior_std),
    )


def _warnings(client: Client, audited: BatchRows, rows: list[SampleRow]) -> list[str]:
    settings = client.settings
    headline = headline_of(settings.attacker if client.is_joint else None)
    return [
        *client.chosen.warnings,
        *_alarm(client, audited),
        *separate_note(audited.separate, len(audited.rows)),
        *_loss_note(client),
        *concentration_notes(rows, audited.uneven, settings.thresholds(), headline),
        *warnings_of(client.checkpoint, client.samples, settings, client.release, audited.rows),
    ]


@torch.no_grad()
def _alarm(client: Client, audited: BatchRows) -> list[str]:
    """What the samples' mean loss says of the model."""
    classes = None
    if is_cross_entropy(client.loss) and not client.samples.targets.is_floating_point():
        # Batch norm with the statistics of the batch takes no sample alone.
        first = client.upload_batch([0]) if client.mixes_samples else client.batch([0])
        outputs = client.release.run(client.release.parameters, first.inputs)
        classes = outputs.shape[1] if outputs.ndim > 1 else None
    losses = [row.loss for row in audited.rows if isinstance(row.loss, float)]
    return loss_alarm(losses, classes, client.checkpoint.training_loss)


@torch.no_grad()
def _loss_note(client: Client) -> list[str]:
    """Where a loss of the user's own, over the first samples as a batch, isn't the mean of their losses."""
    if client.loss.kind != "custom" or len(client.samples) < 2:
        return []
    batch = client.batch(list(range(min(len(client.samples), COMPARED))))
    try:
        shares = shares_of(client.loss, client.release.run(client.release.parameters, batch.inputs), batch.targets)
    except Exception:  # a function that was written for one sample at a time needn't take several
        return []
    return loss_note(shares, client.loss.name)


def _settings(settings: AuditSettings | None, options: dict[str, object]) -> AuditSettings:
    known = AuditSettings.__dataclass_fields__
    for name in options:
        if name not in known:
            raise SettingsError(f"expected options {', '.join(known)}, found {name!r}")
    return replace(settings or AuditSettings(), **options)  # type: ignore[arg-type]


def _missing_reason(name: str, audited: BatchRows) -> str | None:
    """Why a proxy lacks values, if some sample that was audited has none."""
    assessed = [row for row in audited.rows if row.status != "failed"]
    if all(row.proxies[name].value is not None or row.proxies[name].assessed for row in assessed):
        return None
    return audited.reasons.get(name)
