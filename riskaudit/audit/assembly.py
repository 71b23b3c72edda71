"""An audit's rows to its result: the same whether they come from this process or from stored shards."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from riskaudit.audit.alarm import is_cross_entropy, loss_alarm
from riskaudit.audit.checks import refuse_if_all_failed
from riskaudit.audit.client import Client
from riskaudit.audit.notes import (
    concentration_notes,
    loss_note,
    separate_note,
    threat_model,
    unaudited_note,
    warnings_of,
)
from riskaudit.audit.positions import hiding_tokens
from riskaudit.audit.precision import precision_notes
from riskaudit.audit.provenance import audited_data, checkpoint_info, release_info, settings_info
from riskaudit.audit.recognition import doubt_of, without_protective_claims
from riskaudit.audit.shards import AuditPlan
from riskaudit.audit.summaries import noise_curve, noise_needed
from riskaudit.audit.transformed import with_originals
from riskaudit.proxies import proxies_for
from riskaudit.release.shares import shares_of
from riskaudit.results import AuditResult, Cost, NoiseNeed, SampleRow, Tool
from riskaudit.results.checks import CheckFinding
from riskaudit.results.verdicts import error_of, headline_of
from riskaudit.sensitivity import Concentration, Information
from riskaudit.statistics.summaries import class_rows, inequalities
from riskaudit.version import __version__

# Samples over which a loss of the user's own is compared with the mean of their losses.
COMPARED = 16


@dataclass(frozen=True)
class Making:
    """When and how rows were made.

    Attributes:
        created_at: in UTC, ISO 8601.
        command: the command line that reproduces the audit, or None.
        versions: of what computed the numbers.
        seconds: that it took; None where that isn't known.
        peak_memory_bytes: likewise.
    """

    created_at: str
    command: str | None
    versions: dict[str, str]
    seconds: float | None = None
    peak_memory_bytes: int | None = None


class Audited(Protocol):
    """What is known of all samples, as `BatchRows` has it; of very many, where it is kept on disk."""

    @property
    def rows(self) -> Sequence[SampleRow]:
        """Of all samples, in the order of the data."""

    @property
    def information(self) -> Collection[Information]:
        """What the samples' releases tell, where known."""

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why proxies are missing, by proxy."""

    @property
    def matvecs(self) -> int:
        """Products used."""

    @property
    def separate(self) -> int:
        """How many samples were worked out one by one, since their batch is another function."""

    @property
    def uneven(self) -> Mapping[int, Concentration]:
        """How unevenly coordinates are revealed, by position in the data."""


def assemble(
    client: Client,
    plan: AuditPlan,
    audited: Audited,
    findings: Sequence[CheckFinding],
    making: Making,
    num_unaudited: int = 0,
    notes: Sequence[str] = (),
) -> AuditResult:
    """What all rows of an audit say together.

    Args:
        client: at the audit's noise.
        plan: of the audit.
        audited: rows of all samples, in the order of the data.
        findings: of leak checks.
        making: when and how.
        num_unaudited: rows that only say that their sample wasn't audited yet. No noise is recommended then.
        notes: further warnings.

    Raises:
        SamplesError: no row has a number.
    """
    refuse_if_all_failed(audited.rows)
    samples, settings = client.samples, client.settings
    error = error_of(settings.attacker if client.is_joint else None)
    doubt, data = doubt_of(client), audited_data(client, num_unaudited)
    rows, information = _defensible(audited, doubt, data.doubt)
    if num_unaudited:
        information = []
    doubts = [reason for reason in (doubt, data.doubt) if reason is not None]
    return AuditResult(
        tool=Tool(version=__version__),
        created_at=making.created_at,
        command=making.command,
        versions=making.versions,
        checkpoint=checkpoint_info(client.checkpoint, doubt),
        data=data,
        release=release_info(client),
        threat_model=threat_model(client),
        prior=client.chosen.info,
        settings=settings_info(client, plan.solvers),
        cost=Cost(seconds=making.seconds, matvecs=audited.matvecs, peak_memory_bytes=making.peak_memory_bytes),
        proxies=[
            proxy.info(_missing_reason(name, audited))
            for name, proxy in proxies_for(joint=client.is_joint, text=data.text is not None).items()
        ],
        samples=rows if client.originals is None else with_originals(rows, samples, client.originals, error),
        classes=class_rows(rows, samples.class_names, settings.seed),
        fairness=inequalities(rows),
        noise_curve=noise_curve(information),
        noise_needed=_noise_needed(client, rows, information),
        checks=list(findings),
        calibration=None if plan.calibrator is None else plan.calibrator.info,
        warnings=[*doubts, *unaudited_note(num_unaudited, len(rows)), *notes, *_warnings(client, plan, audited, rows)],
    )


def checked_rows(client: Client, audited: Audited) -> Sequence[SampleRow]:
    """The rows as a result has them, without what would protect where the model or the data are doubted.

    Raises:
        SamplesError: no row has a number.
    """
    refuse_if_all_failed(audited.rows)
    return _defensible(audited, doubt_of(client), audited_data(client).doubt)[0]


def _defensible(
    audited: Audited, doubt: str | None, data_doubt: str | None
) -> tuple[Sequence[SampleRow], Collection[Information]]:
    """Rows and what releases tell, without what would protect where the model or the data are doubted."""
    rows: Sequence[SampleRow] = audited.rows
    information: Collection[Information] = audited.information
    if doubt is not None:
        # The gradients of another function say nothing of the noise that the true ones need.
        rows, information = without_protective_claims(rows), []
    if data_doubt is not None:
        rows, information = without_protective_claims(rows, data_doubt), []
    return rows, information


def _noise_needed(client: Client, rows: Sequence[SampleRow], information: Collection[Information]) -> list[NoiseNeed]:
    settings, prior_std = client.settings, client.chosen.info.std
    needs = noise_needed(
        rows,
        # Noise would be enough for the mean over all coordinates, not for those that the release depends on.
        [] if any(row.concentration > 1 for row in rows) else information,
        settings.revealed_limits(prior_std),
        # With one prior for all coordinates the limit says the same.
        {} if client.chosen.info.kind == "isotropic" else settings.least_errors(prior_std),
    )
    return needs if client.samples.tokens is None else hiding_tokens(needs, rows)


def _warnings(client: Client, plan: AuditPlan, audited: Audited, rows: Sequence[SampleRow]) -> list[str]:
    settings = client.settings
    headline = headline_of(settings.attacker if client.is_joint else None)
    return [
        *client.chosen.warnings,
        *_alarm(client, audited),
        *separate_note(audited.separate, len(audited.rows)),
        *_loss_note(client),
        *precision_notes(_is_mixed(client, plan), client.single is not None, rows),
        *concentration_notes(rows, audited.uneven, settings.thresholds(), headline),
        *warnings_of(client.checkpoint, client.samples, settings, client.release, audited.rows),
    ]


def _is_mixed(client: Client, plan: AuditPlan) -> bool:
    return plan.solvers.only_brackets and client.settings.chosen_dtype(client.device) == "mixed"


@torch.no_grad()
def _alarm(client: Client, audited: Audited) -> list[str]:
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


def _missing_reason(name: str, audited: Audited) -> str | None:
    """Why a proxy lacks values, if some sample that was audited has none."""
    reason = audited.reasons.get(name)
    if reason is None or all(
        row.status == "failed" or row.proxies[name].value is not None or row.proxies[name].assessed
        for row in audited.rows
    ):
        return None
    return reason
