"""The findings of an `AuditResult`: limits, leaks, samples at high risk or without a verdict, doubts.

Limits are held against the numbers one by one, so that each has a finding of its own; what the policy says of all
together stands where no single one explains it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from riskaudit.errors import SettingsError
from riskaudit.formatting import given, percent, sentence
from riskaudit.policy import LIMITS, Policy
from riskaudit.report.recomputation import RENAMED
from riskaudit.report.sarif.checks import check_findings
from riskaudit.report.sarif.log import Artifact, Finding, Level, Rule, to_sarif
from riskaudit.results import AuditResult, PolicyOutcome, SampleRow
from riskaudit.results.tables import most_exposed
from riskaudit.results.verdicts import attacker_of, headline_of

PAGE = "docs/sarif.md"
_MORE_NOISE = "Add noise, clip, or send larger means: the report's section on what would protect says how much."
_LIMIT_TEXTS = {
    "max_revealed": "A sample may reveal more of its input than the policy allows.",
    "min_rmse": "A sample can be reconstructed more closely than the policy allows.",
    "forbid_checks": "A check that the policy forbids found something in the clear, or could not be run.",
    "max_class_gap": "Classes differ by more in what they reveal than the policy allows.",
}
SAMPLE_RULES = {
    "high": Rule(
        "sample/high",
        "Sample at high risk",
        "More of the sample's input is revealed than the threshold for high, or the release is undefended.",
        _MORE_NOISE,
        PAGE,
    ),
    "not_assessed": Rule(
        "sample/not-assessed",
        "Sample not assessed",
        "No number that may be relied on came of the sample, which is no sign of safety.",
        "See the reason; more products, another solver or a model that can be differentiated may help.",
        PAGE,
        "warning",
    ),
}
_DECISION = Rule(
    "policy/decision",
    "Policy exceeded",
    "The policy refuses the release for a reason that isn't one of its limits.",
    _MORE_NOISE,
    PAGE,
)
_CONTRADICTION = Rule(
    "audit/contradiction",
    "The file contradicts its own numbers",
    "Conclusions in audit.json aren't those that its numbers give: it was edited, or is of another version.",
    "Run the scan again.",
    PAGE,
)
_DOUBT = Rule(
    "audit/doubt",
    "The audit doesn't vouch for its numbers",
    "The model or its inputs are such that nothing that protects is claimed of any sample.",
    "See the reason.",
    PAGE,
    "warning",
)


def audit_to_sarif(result: AuditResult, contradictions: Sequence[str] = ()) -> bytes:
    """A log of one audit, whose strings are fit to be shown and whose conclusions are drawn from its numbers."""
    found = [
        *((_CONTRADICTION, _of_audit(result, _CONTRADICTION, text)) for text in contradictions),
        *_policy(result),
        *check_findings(result.checks, files_of(result), result.release.spec),
        *((_DOUBT, _of_audit(result, _DOUBT, text)) for text in result.doubts),
        *_samples(result),
    ]
    return to_sarif(result.tool, [rule for rule, _ in found], [finding for _, finding in found])


def files_of(result: AuditResult) -> tuple[Artifact, Artifact]:
    """The checkpoint and the data."""
    return Artifact(result.checkpoint.name, result.checkpoint.sha256), Artifact(result.data.name, result.data.sha256)


def _of_audit(result: AuditResult, rule: Rule, text: str) -> Finding:
    # Numbers in the sentence may change while it says the same.
    words = "".join(character for character in text if not character.isdigit())
    return Finding(rule.id, sentence(text), files_of(result), (result.release.spec, words))


def _policy(result: AuditResult) -> Iterator[tuple[Rule, Finding]]:
    """One finding for each limit that isn't kept; one for the decision where that isn't by a limit."""
    said = result.policy
    if said is None or said.decision == "allow":
        return
    level: Level = "error" if said.decision == "block" else "warning"
    explained = False
    limits: dict[str, Any] = {RENAMED.get(name, name): value for name, value in said.limits.items()}
    if said.forbid_checks:
        limits["forbid_checks"] = said.forbid_checks
    for limit, value in limits.items():
        outcome = _decided(result, limit, value, said.max_unassessed)
        if outcome is not None and outcome.decision == "block":
            explained = True
            title = f"{limit} of the policy exceeded"
            rule = Rule(f"policy/{limit}", title, _LIMIT_TEXTS.get(limit, f"{title}."), _MORE_NOISE, PAGE)
            shown = given(value) if isinstance(value, float) else ", ".join(value)
            message = sentence(f"the limit {limit} = {shown} is not kept: {'; '.join(outcome.reasons)}")
            identity = (result.release.spec, shown)
            yield rule, Finding(rule.id, message, files_of(result), identity, level, samples=outcome.exceeded)
    if not explained:
        message = sentence("; ".join(said.reasons))
        yield _DECISION, Finding(_DECISION.id, message, files_of(result), (result.release.spec,), level)


def _decided(result: AuditResult, limit: str, value: object, max_unassessed: float) -> PolicyOutcome | None:
    """What a policy of this limit alone says; None where it isn't known, or is no limit."""
    if limit not in (*LIMITS, "forbid_checks"):
        return None
    try:
        return Policy.from_mapping({limit: value, "max_unassessed": max_unassessed}).decide(result)
    except SettingsError:
        return None


def _samples(result: AuditResult) -> Iterator[tuple[Rule, Finding]]:
    checkpoint, data = files_of(result)
    for row in result.samples:
        rule = SAMPLE_RULES.get(row.verdict)
        if rule is not None:
            identity = (result.release.spec, row.id, row.upload)
            message = _message(row, result)
            yield rule, Finding(rule.id, message, (data, checkpoint), identity, samples=[row.id])


def _message(row: SampleRow, result: AuditResult) -> str:
    upload = "" if row.upload is None else f" of upload {row.upload}"
    if row.verdict == "not_assessed":
        return sentence(f"sample {row.id}{upload} is not assessed: {row.reason or row.status.replace('_', ' ')}")
    if not result.release.defended:
        return f"Sample {row.id}{upload} is at high risk: the release is undefended, assume full disclosure."
    headline = row.proxies.get(headline_of(attacker_of(result.release)))
    high = None if headline is None else headline.ends[1]
    revealed = "" if high is None else f": up to {percent(high)} of its input is revealed"
    column = most_exposed(row.columns)
    if column is not None and (most := column[1].revealed.ends[1]) is not None:
        revealed = f": up to {percent(most)} of its column {column[0]} is revealed"
    return f"Sample {row.id}{upload} is at high risk{revealed}."
