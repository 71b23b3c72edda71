"""Every check on every upload of a release, as rows of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from riskaudit.checks.base import CHECKS, Check, Finding
from riskaudit.checks.upload import SentUpload
from riskaudit.results.checks import CHECK_IDS, CheckFinding, Detail

# Numbers of an upload of one sample that stand by it where findings on several are put together.
COUNTED = frozenset({"false_rows", "false_tokens", "vocabulary"})


def check_upload(
    upload: SentUpload, sample_ids: Sequence[str], number: int | None = None, only: Sequence[str] = CHECK_IDS
) -> list[CheckFinding]:
    """Checks on one upload.

    Args:
        upload: n samples.
        sample_ids: theirs, [n].
        number: of the upload; None where samples leave alone.
        only: ids of those that are run.
    """
    return [
        _row(CHECKS[name], finding, sample_ids, number)
        for name in CHECK_IDS
        if name in only
        for finding in _findings(CHECKS[name], upload)
    ]


def _findings(check: Check, upload: SentUpload) -> list[Finding]:
    try:
        return check.run(upload)
    except Exception as error:  # one check's failure is a finding, never a reason to leave out the others
        return [Finding("failed", reason=f"{type(error).__name__} in the check")]


def failed_checks(error: Exception, sample_ids: Sequence[str], number: int | None = None) -> list[CheckFinding]:
    """What is said of all checks where an upload could not even be made."""
    finding = Finding("failed", reason=f"{type(error).__name__} when the upload was made")
    return [_row(CHECKS[name], finding, sample_ids, number) for name in CHECK_IDS]


def _row(check: Check, finding: Finding, sample_ids: Sequence[str], number: int | None) -> CheckFinding:
    return CheckFinding(
        id=check.id,
        title=check.title,
        status=finding.status,
        exactness=finding.exactness,
        recovers=finding.recovers or check.recovers,
        upload=number,
        layer=finding.layer,
        sample_ids=[sample_ids[position] for position in finding.positions],
        predicted_rmse=finding.predicted_rmse,
        clear_from_std=finding.clear_from_std,
        details={name: _named(detail, sample_ids) for name, detail in finding.details.items()},
        reason=finding.reason,
    )


def _named(detail: Detail | Mapping[int, float], sample_ids: Sequence[str]) -> Detail:
    """Numbers per sample by its id in place of its position."""
    if isinstance(detail, Mapping):
        return {
            position if isinstance(position, str) else sample_ids[position]: value for position, value in detail.items()
        }
    return detail


def merged(findings: Sequence[CheckFinding]) -> list[CheckFinding]:
    """Findings on uploads of one sample each, one per check, layer and status, over all samples."""

    def key(finding: CheckFinding) -> tuple[str, ...]:
        name, layer, reason = finding.id, finding.layer or "", finding.reason or ""
        return (name, layer, finding.status, finding.exactness, finding.recovers, reason)

    ordered = sorted(findings, key=lambda finding: (CHECK_IDS.index(finding.id), key(finding)))
    return [_merged(list(group)) for _, group in groupby(ordered, key)]


def _merged(findings: list[CheckFinding]) -> CheckFinding:
    first = findings[0]
    errors = [finding.predicted_rmse for finding in findings if finding.predicted_rmse is not None]
    stds = [finding.clear_from_std for finding in findings]
    per_sample: dict[str, dict[str, float]] = {}
    for finding in findings:
        for name, detail in finding.details.items():
            if isinstance(detail, dict):
                per_sample.setdefault(name, {}).update(detail)
            elif name in COUNTED and isinstance(detail, int) and len(finding.sample_ids) == 1:
                per_sample.setdefault(name, {})[finding.sample_ids[0]] = detail
    return first.model_copy(
        update={
            "sample_ids": [sample_id for finding in findings for sample_id in finding.sample_ids],
            "predicted_rmse": min(errors) if errors else None,
            "clear_from_std": None if None in stds else max(std for std in stds if std is not None),
            "details": dict(per_sample),
        }
    )
