"""The check interface: an upload in, findings out that need no spectrum, no attack and no doubt.

A finding "leak" is a proof: the input (or the features, the labels, the statistics) is recovered from what leaves
alone, and compared with the truth, which only the auditor has. A finding "clear" comes with its reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from riskaudit.checks.upload import SentUpload
from riskaudit.errors import SettingsError
from riskaudit.inputs.text import listing
from riskaudit.results.checks import CHECK_IDS, CheckStatus, Detail, Exactness, Recovery


@dataclass(frozen=True)
class Finding:
    """What a check says of one layer of an upload, or of the whole.

    Attributes:
        status: as in `CheckFinding`, and so the others.
        layer: name in the model.
        positions: of the samples concerned, in the upload.
        exactness: of this finding.
        predicted_rmse: of the most exposed of them.
        clear_from_std: as in `CheckFinding`.
        details: numbers; those per sample by its position.
        reason: in words.
        recovers: what is in the clear, where that isn't what the check recovers at best.
    """

    status: CheckStatus
    layer: str | None = None
    positions: Sequence[int] = ()
    exactness: Exactness = "exact"
    predicted_rmse: float | None = None
    details: Mapping[str, Detail | Mapping[int, float]] = field(default_factory=dict)
    reason: str | None = None
    recovers: Recovery | None = None
    clear_from_std: float | None = None


class Check(ABC):
    """An exact statement about an upload.

    Attributes:
        id: the key in audit.json, in policies and on the command line.
        title: for readers.
        summary: what it means when it says leak, one sentence.
        remedy: what to do then, one sentence.
        source: where it is described.
        recovers: what is in the clear at best when it says leak.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    remedy: ClassVar[str]
    source: ClassVar[str]
    recovers: ClassVar[Recovery]

    @abstractmethod
    def run(self, upload: SentUpload) -> list[Finding]:
        """What it says of every layer it concerns; one finding "not_applicable" where there is none."""


CHECKS: dict[str, Check] = {}
# Names in one reason.
LISTED = 3


def register(check: type[Check]) -> type[Check]:
    """Class decorator: make a check part of every audit."""
    if check.id not in CHECK_IDS:
        raise SettingsError(f"expected the check {check.id!r} among riskaudit.results.checks.CHECK_IDS")
    if check.id in CHECKS:
        raise SettingsError(f"the check {check.id!r} is registered twice")
    CHECKS[check.id] = check()
    return check


def nothing_to_read(upload: SentUpload, reason: str) -> list[Finding]:
    """The finding of a check on fully connected layers that found none: no clearance where one may be hidden."""
    return not_judged(upload) or not_applicable(reason)


def not_judged(upload: SentUpload) -> list[Finding]:
    """The finding on what leaves and can't be looked at as a fully connected layer; none where there is nothing."""
    names = upload.unread_matrices
    if not names:
        return []
    reason = (
        f"not judged: {listing(names, LISTED)} may multiply inputs, but belongs to no fully connected layer that the "
        "model calls once"
    )
    return [Finding("failed", details={"not_judged": len(names)}, reason=reason)]


def not_applicable(reason: str) -> list[Finding]:
    """The finding of a check that has nothing to look at."""
    return [Finding("not_applicable", reason=reason)]
