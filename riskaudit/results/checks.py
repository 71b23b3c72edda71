"""What exact leak checks say of an upload. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from pydantic import Field

from riskaudit.results.base import Record

CheckStatus: TypeAlias = Literal["leak", "clear", "not_applicable", "failed"]
Exactness: TypeAlias = Literal["exact", "predicted", "if_server_changes_model"]
Recovery: TypeAlias = Literal[
    "input",
    "scaled_input",
    "features",
    "scaled_features",
    "subspace",
    "labels",
    "statistics",
    "tokens",
    "membership",
    "categories",
]
RECOVERED: Mapping[Recovery, str] = {
    "input": "the input itself",
    "scaled_input": "the input up to a factor",
    "features": "what a layer sees of the input",
    "scaled_features": "what a layer sees of the input, up to a factor",
    "subspace": "the inputs up to combinations of them",
    "labels": "labels, and how many of each",
    "statistics": "mean and variance of the batch, if running statistics are sent along",
    "tokens": "tokens",
    "membership": "entries that one sample fills alone",
    "categories": "categories of a table's columns",
}
"""What is in the clear, in words."""
CHECK_IDS = (
    "singleton-unit",
    "head-features",
    "labels",
    "span",
    "batch-norm-buffers",
    "embedding-rows",
    "token-span",
    "category-columns",
    "lone-contributor",
)
"""Of all checks, in the order of reports; torch-free, so that policies can be read without loading them."""
Detail: TypeAlias = float | int | bool | str | list[float] | dict[str, float] | None


class CheckFinding(Record):
    """One check on one upload, or on all of them alike.

    Attributes:
        id: name of the check.
        title: what the check is about, for readers.
        status: "leak" where something is in the clear, with what it concerns; "clear" with the reason why not.
        exactness: "exact" where it was recovered from the upload and compared with the truth; "predicted" where noise
            or other samples leave an error that is known.
        recovers: what is in the clear where there is a leak.
        upload: number of the upload; None where samples leave alone and this is about all of ``sample_ids``.
        layer: name of the layer in the model.
        sample_ids: whose data are in the clear.
        predicted_rmse: error of what is recovered of the most exposed of them, per coordinate; None where it is exact.
        clear_from_std: std of Gaussian noise, per entry that leaves, from which on the check surely says no leak, 0
            where any noise will do; None where no noise is known to, and of findings that noise can't make a leak.
        details: numbers of the check's own.
        reason: why it is clear, doesn't apply or failed.
    """

    id: str
    title: str
    status: CheckStatus
    exactness: Exactness
    recovers: Recovery
    upload: int | None = None
    layer: str | None = None
    sample_ids: list[str] = Field(default_factory=list)
    predicted_rmse: float | None = None
    clear_from_std: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    details: dict[str, Detail] = Field(default_factory=dict)
    reason: str | None = None


def relative_error(finding: CheckFinding) -> float | None:
    """Largest error of what a finding nearly recovers, relative to its largest coordinate; None where it says none."""
    errors = finding.details.get("relative_error")
    return max(errors.values(), default=None) if isinstance(errors, dict) and finding.exactness != "exact" else None


def leaking_checks(findings: list[CheckFinding], sample_id: str) -> list[str]:
    """Ids of the checks that found something of this sample in the clear, each once."""
    found = (finding.id for finding in findings if finding.status == "leak" and sample_id in finding.sample_ids)
    return list(dict.fromkeys(found))


def findings_in_the_clear(findings: list[CheckFinding]) -> list[CheckFinding]:
    """Those by which a sample's very input can be read off what leaves, be it up to a factor."""
    inputs = ("input", "scaled_input", "tokens")
    return [finding for finding in findings if finding.status == "leak" and finding.recovers in inputs]


def ids_in_the_clear(findings: list[CheckFinding]) -> list[str]:
    """Samples whose very input can be read off what leaves, in the order of the findings, each once."""
    return list(dict.fromkeys(each for finding in findings_in_the_clear(findings) for each in finding.sample_ids))
