"""``riskaudit study fairness``: an audit, attacked where asked for, and on whom its leak falls.

`fairness` itself is a pure function of an audit and needs no model; it lives in `riskaudit.studies.fairness.exposure`.

Groups that the user names come from a CSV with the columns id and group.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from torch import nn

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit
from riskaudit.errors import SamplesError
from riskaudit.files import check_found
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.inputs.text import clean
from riskaudit.results import AuditResult
from riskaudit.studies.base import StudyRun
from riskaudit.studies.fairness.exposure import fairness
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.verify.record import VerifyStudy
from riskaudit.studies.verify.run import verify

__all__ = ["fairness", "fairness_study", "with_fairness"]
_COLUMNS = ["id", "group"]
_LARGEST_FILE = 2**26


def fairness_study(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    settings: AuditSettings | None = None,
    run: StudyRun | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    groups_name: str | None = None,
) -> AuditResult:
    """Audit, attack where asked for, and compare samples, classes and groups.

    Returns:
        The audit with ``studies.fairness``, and ``studies.verify`` where attacks ran.

    Raises:
        RiskauditError: as `audit`.
        KeyboardInterrupt: attacks were interrupted; the log keeps the finished ones.
    """
    run = run or StudyRun()
    if not run.attacks:
        result = audit(
            checkpoint, samples, settings, show_samples=run.show_samples, command=run.command, progress=run.progress,
            workers=run.workers, started=run.started,
        )  # fmt: skip
        return with_fairness(result, groups, groups_name)
    result = verify(checkpoint, samples, settings, AttackSettings(steps=run.attack_steps), run)
    study = result.studies.get(VerifyStudy)
    if study is None or not study.complete:
        raise KeyboardInterrupt
    return with_fairness(result, groups, groups_name)


def with_fairness(
    result: AuditResult, groups: Mapping[str, str] | None = None, groups_name: str | None = None
) -> AuditResult:
    """An audit with its fairness study."""
    return result.with_study(fairness(result, groups, groups_name=groups_name))


def read_groups(path: str | Path) -> dict[str, str]:
    """Group by sample id, from a CSV whose first line is ``id,group``.

    Raises:
        SamplesError: the file can't be read, has other columns, or gives an id twice.
    """
    check_found(path, SamplesError)
    path = Path(path)
    name = clean(path.name)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise SamplesError(f"expected a CSV of ids and groups in {name}, found a file of more than 64 MiB")
        text = path.read_text(encoding="utf-8-sig")
        lines = list(csv.reader(text.splitlines(), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise SamplesError(f"can't read {name} ({clean(cause)}); save it as CSV with the columns id,group") from cause
    rows = [[clean(field, 200) for field in line] for line in lines if any(field.strip() for field in line)]
    if not rows or [field.lower() for field in rows[0]] != _COLUMNS:
        actual = "other words" if rows else "nothing"
        raise SamplesError(f"expected the first line of {name} to be id,group, found {actual}")
    groups: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != 2 or not row[0] or not row[1]:
            raise SamplesError(f"expected an id and a group in row {number} of {name}, found something else")
        if groups.setdefault(row[0], row[1]) != row[1]:
            raise SamplesError(f"{name} gives the id in row {number} two groups; keep one row per id")
    if not groups:
        raise SamplesError(f"expected at least one id in {name}, found none")
    return groups


def groups_of_ids(
    groups: Mapping[str, str], ids: Sequence[str], names: Sequence[str] | None = None, source: str = "the file"
) -> dict[str, str]:
    """The same groups by the ids of an audit, from groups by id or by the name that an id was hashed from.

    ``names`` are what each id was hashed from: a path inside a folder also counts by its file name where
    that is distinct.

    Returns:
        Groups of the samples that have one, then those of ids that no sample has.

    Raises:
        SamplesError: no id fits.
    """
    aliases = {sample: sample for sample in ids}
    if names is not None:
        short = [PurePosixPath(name).name for name in names]
        counts = Counter(short)
        for sample, name, file in zip(ids, names, short, strict=True):
            aliases.setdefault(name, sample)
            if counts[file] == 1:
                aliases.setdefault(file, sample)
    by_sample: dict[str, str] = {}
    for key, group in groups.items():
        if key in aliases:
            by_sample.setdefault(aliases[key], group)
    if not by_sample:
        raise SamplesError(
            f"none of the {len(groups)} ids in {source} is among the {len(ids)} audited samples, whose ids look like "
            f"{ids[0]!r}; use the ids that an audit prints"
        )
    known_ids = set(ids)
    return by_sample | {key: group for key, group in groups.items() if key not in aliases and key not in known_ids}
