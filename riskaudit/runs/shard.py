"""One shard: the audit of some samples of a checkpoint, as planned where it can be, else sample by sample.

As planned, a shard is worked on in batches of the plan's width. Where memory runs out a batch is halved. A shard that
failed twice as a whole (an error, or the end of its process) is worked on one upload at a time, and an upload that
fails twice by itself becomes rows that say so. A sample's numbers don't depend on its batch but for rounding, so that
rows of narrower batches agree with those planned as far as floating-point sums do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from riskaudit.audit.checks import is_out_of_memory
from riskaudit.audit.leaks import check_uploads, named_upload
from riskaudit.audit.rows import BatchRows, failed_row
from riskaudit.audit.shards import AuditShard
from riskaudit.checks.run import failed_checks
from riskaudit.errors import EngineError, RiskauditError, UserCodeError
from riskaudit.inputs.text import clean
from riskaudit.results.checks import CheckFinding
from riskaudit.runs.leases import Attempt, Claim, weight_of
from riskaudit.runs.manifest import Unit
from riskaudit.runs.opening import OpenedCheckpoint

# From here on attempts speak against what was tried: two that were seen to fail.
TWICE = 4
ENDED_TWICE = "the process that audited it by itself ended twice, for lack of memory perhaps"


@dataclass
class ShardRows:
    """A shard's rows and findings.

    Attributes:
        rows: of its samples.
        findings: of leak checks, upload by upload.
        batch: the fewest uploads that were worked on at once.
    """

    batch: int
    rows: BatchRows = field(default_factory=BatchRows)
    findings: list[CheckFinding] = field(default_factory=list)


def audit_unit(opened: OpenedCheckpoint, unit: Unit, attempts: Sequence[Attempt], claim: Claim) -> ShardRows:
    """The rows of a shard, given how earlier attempts ended.

    Raises:
        Exception: whatever the audit of its samples raises, where it hasn't failed twice before.
    """
    return _one_by_one(opened, unit, attempts, claim) if weight_of(attempts) >= TWICE else _as_planned(opened, unit)


def _as_planned(opened: OpenedCheckpoint, unit: Unit) -> ShardRows:
    size = opened.client.upload_size
    found, place = ShardRows(opened.plan.solvers.width), 0
    while place < unit.size:
        shard = _part(opened, unit.first + place, min(found.batch * size, unit.size - place))
        try:
            found.rows.extend(shard.run(opened.client))
        except RiskauditError as error:
            cause = error.__cause__
            if cause is None or not is_out_of_memory(cause) or found.batch == 1:
                raise
            found.batch //= 2
            continue
        place += shard.size
    found.findings = check_uploads(opened.client, _uploads(opened, unit))
    return found


def _one_by_one(opened: OpenedCheckpoint, unit: Unit, attempts: Sequence[Attempt], claim: Claim) -> ShardRows:
    size, found = opened.client.upload_size, ShardRows(1)
    for number in _uploads(opened, unit):
        shard = _part(opened, number * size, size)
        if weight_of(attempts, number) >= TWICE:
            _fail(opened, shard, number, ENDED_TWICE, found)
            continue
        claim.trying(number)
        reason = ""
        for _ in range(2):
            try:
                rows, findings = shard.run(opened.client), check_uploads(opened.client, [number])
            except Exception as error:  # whatever the model's code raises is this upload's failure alone
                reason = reason_of(error)
            else:
                found.rows.extend(rows)
                found.findings += findings
                break
        else:
            _fail(opened, shard, number, f"{reason} (twice, by itself)", found)
    claim.trying(None)
    return found


def reason_of(error: BaseException) -> str:
    """An error in a row; what other code's errors say may hold private values."""
    if isinstance(error, RiskauditError) and not isinstance(error, UserCodeError):
        return clean(error, 300)
    return f"{type(error).__name__} in the audit"


def _fail(opened: OpenedCheckpoint, shard: AuditShard, number: int, reason: str, found: ShardRows) -> None:
    """Rows and findings of an upload that nothing is known of."""
    found.rows.extend(_failed(opened, shard, reason))
    if opened.client.settings.checks:
        found.findings += failed_checks(EngineError(reason), *named_upload(opened.client, number))


def unaudited(opened: OpenedCheckpoint, unit: Unit) -> BatchRows:
    """Rows of a shard that isn't finished."""
    shard = _part(opened, unit.first, unit.size)
    return _failed(opened, shard, f"not audited: shard {unit.number} of the run isn't finished")


def _failed(opened: OpenedCheckpoint, shard: AuditShard, reason: str) -> BatchRows:
    """Rows of a shard's samples without any number."""
    context = shard.context(opened.client)
    parts = shard.batches(opened.client)
    return BatchRows([failed_row(context, part, place, reason) for part in parts for place in range(len(part.indices))])


def _part(opened: OpenedCheckpoint, first: int, count: int) -> AuditShard:
    carried = tuple(opened.carried[first : first + count])
    return AuditShard(opened.plan, first, carried, len(opened.client.samples))


def _uploads(opened: OpenedCheckpoint, unit: Unit) -> range:
    size = opened.client.upload_size
    return range(unit.first // size, (unit.first + unit.size) // size)
