"""Finished shards to one audit per checkpoint: the same bytes whoever worked on them.

Of a large audit one shard's rows are in memory at once; those of all are on disk.
"""

from __future__ import annotations

from functools import partial

from riskaudit.audit.assembly import Making, assemble
from riskaudit.audit.leaks import together
from riskaudit.audit.rows import BatchRows
from riskaudit.audit.settings import AuditSettings
from riskaudit.errors import RunError
from riskaudit.results import AuditResult, columns
from riskaudit.results.checks import CheckFinding
from riskaudit.runs.encoding import decode
from riskaudit.runs.folder import RunFolder
from riskaudit.runs.manifest import Unit
from riskaudit.runs.opening import computing_as, open_checkpoint
from riskaudit.runs.shard import unaudited
from riskaudit.runs.streaming import StoredBatchRows

# Findings of a large audit that are put together before the last shard is read.
_MOST_FINDINGS = 4096


def merge_checkpoint(folder: RunFolder, number: int, limits: AuditSettings | None = None) -> AuditResult:
    """The audit of one of a run's checkpoints; samples of shards that aren't finished are in it as not assessed.

    Args:
        folder: of the run.
        number: of the checkpoint.
        limits: see `open_checkpoint`.

    Raises:
        RunError: a shard that isn't whole, or other inputs or versions than the run was created with.
        SamplesError: no sample has a number.
    """
    manifest, finished = folder.manifest, folder.store.finished()
    checkpoint = manifest.checkpoints[number]
    with computing_as(manifest.threads):
        opened = open_checkpoint(manifest, number, limits)
        rows: BatchRows | StoredBatchRows = BatchRows()
        if checkpoint.num_samples > columns.MANY:
            rows = StoredBatchRows()
        findings, missing, narrow = list[CheckFinding](), 0, 0
        units = [unit for unit in manifest.units if unit.checkpoint == number]
        for unit in units:
            if unit.number in finished:
                part, found, batch = _read(folder, unit)
                narrow += batch < opened.plan.solvers.width
            else:
                part, found = unaudited(opened, unit), []
                missing += unit.size
            findings += found
            if isinstance(rows, StoredBatchRows):
                rows.extend(part, partial(_rows, folder, unit))
                # Those on single samples would be many.
                findings = together(opened.client, findings) if len(findings) > _MOST_FINDINGS else findings
            else:
                rows.extend(part)
        making = Making(manifest.created_at, checkpoint.command, dict(manifest.versions))
        return assemble(
            opened.client,
            opened.plan,
            rows,
            together(opened.client, findings),
            making,
            num_unaudited=missing,
            notes=_narrow_note(narrow, len(units), opened.client.is_joint),
        )


def _rows(folder: RunFolder, unit: Unit) -> BatchRows:
    return _read(folder, unit)[0]


def _read(folder: RunFolder, unit: Unit) -> tuple[BatchRows, list[CheckFinding], int]:
    header, document = folder.store.read(unit)
    try:
        rows, findings = decode(document)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RunError(
            f"can't use {folder.store.path(unit)} (its rows can't be read: {type(error).__name__}); remove the file, "
            "and riskaudit run work makes it anew"
        ) from error
    return rows, findings, header.batch


def _narrow_note(narrow: int, total: int, is_joint: bool) -> list[str]:
    if not narrow:
        return []
    what = "uploads" if is_joint else "samples"
    return [
        f"{narrow} of {total} shards were worked out with fewer {what} at once than planned, since memory ran out or "
        "two attempts failed: the numbers are those of the plan but for rounding"
    ]
