"""`audit`: every proxy for every sample of a release, and what they say together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import nn

from riskaudit.audit.assembly import Making, assemble, checked_rows
from riskaudit.audit.client import Client, make_client
from riskaudit.audit.leaks import check_leaks
from riskaudit.audit.provenance import peak_memory, versions
from riskaudit.audit.rows import BatchRows
from riskaudit.audit.settings import AuditSettings
from riskaudit.audit.shards import audit_shards, plan_audit
from riskaudit.engine import Engine, Progress, SerialEngine, make_engine
from riskaudit.errors import SettingsError
from riskaudit.formatting import present_time
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.proxies.posterior import posterior_error
from riskaudit.results import AuditResult, Estimate, SampleRow
from riskaudit.sensitivity import Information


def audit(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    settings: AuditSettings | None = None,
    *,
    show_samples: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
    workers: int = 1,
    started: float | None = None,
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
        progress: called as ``progress(done, total)`` before the first batch and after every one.
        workers: processes that batches are spread over; results don't depend on it.
        started: when a ``budget`` of time began, on the monotonic clock; None for now. What comes before the first
            sample counts.
        **options: fields of `AuditSettings`, e.g. ``release="clip:1.0,gaussian:0.01"``.

    Raises:
        RiskauditError: the model, data and options don't fit; the message says what to change.
    """
    started = time.monotonic() if started is None else started
    with make_engine(workers) as engine:
        client = make_client(checkpoint, samples, _settings(settings, options))
        return audit_client(
            client, engine, show_samples=show_samples, command=command, progress=progress, budget_started=started
        )


def audit_client(
    client: Client,
    engine: Engine | None = None,
    *,
    noise_std: float | None = None,
    show_samples: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
    budget_started: float | None = None,
) -> AuditResult:
    """`audit` of a client that was checked already.

    Args:
        client: what is audited.
        engine: where; one batch after the other in this process unless told otherwise.
        noise_std: of its release, as `Client.at_noise` takes it.
        show_samples: see `audit`.
        command: see `audit`.
        progress: see `audit`.
        budget_started: as ``started`` of `audit`.

    Raises:
        RiskauditError: see `audit`.
    """
    started, engine = time.perf_counter(), engine or SerialEngine()
    if client.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(client.device)
    plan = plan_audit(client, noise_std, engine.workers, show_samples, budget_started)
    audited = BatchRows()
    for part in engine.map(audit_shards(client, plan), client, progress=progress):
        audited.extend(part)
    client = client.at_noise(noise_std)
    findings = check_leaks(client)
    return assemble(
        client,
        plan,
        audited,
        findings,
        Making(
            created_at=present_time(),
            command=command,
            versions=versions(),
            seconds=round(time.perf_counter() - started, 3),
            peak_memory_bytes=peak_memory(client.device),
        ),
    )


@final
@dataclass(frozen=True)
class AuditedSamples:
    """The rows of an audit, and what the samples' releases tell at any noise.

    Attributes:
        rows: of all samples, in the order of the data.
        information: likewise; None where a row failed, or the headline proxy wasn't asked for.
        sigma: Gaussian std, per released entry, of the same Fisher information as the audited noise.
    """

    rows: Sequence[SampleRow]
    information: Sequence[Information | None]
    sigma: float

    def posterior_errors(self, factor: float) -> list[Estimate | None]:
        """The posterior error at so many times the audited noise, of the attacker by whom verdicts go.

        No product is needed; intervals that aren't exact may be wider than those of an audit at that noise.
        """
        sigma = self.sigma * factor
        return [None if each is None else posterior_error(each, sigma) for each in self.information]


def audit_samples(client: Client) -> AuditedSamples:
    """The rows of `audit_client` alone, for studies of many models: no leak checks, nothing over all samples together.

    Raises:
        RiskauditError: see `audit`.
    """
    engine, noise = SerialEngine(), client.noisy.noise
    assert noise is not None
    audited = BatchRows()
    for part in engine.map(audit_shards(client, plan_audit(client, None, engine.workers, show_samples=False)), client):
        audited.extend(part)
    return AuditedSamples(checked_rows(client, audited), audited.information_by_row, noise.fisher_std)


def _settings(settings: AuditSettings | None, options: dict[str, object]) -> AuditSettings:
    known = AuditSettings.__dataclass_fields__
    for name in options:
        if name not in known:
            raise SettingsError(f"expected options {', '.join(known)}, found {name!r}")
    return replace(settings or AuditSettings(), **options)  # type: ignore[arg-type]
