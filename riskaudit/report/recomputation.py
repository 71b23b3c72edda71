"""What an audit's numbers say, whatever conclusions stand in the file.

Verdicts, the policy's decision, class rows and unfairness are pure functions of the sample rows. A file may have been
edited, or come from an older version: what disagrees is decided anew and named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

from riskaudit.errors import ResultError, SettingsError
from riskaudit.formatting import count
from riskaudit.policy import FORBIDDEN, Policy
from riskaudit.results import AuditResult, ClassRow, Fairness, NoiseNeed, PolicyOutcome, SampleRow
from riskaudit.results.consistency import exclusive
from riskaudit.results.ranks import position
from riskaudit.results.stored import kept_as
from riskaudit.results.verdicts import attacker_of, headline_of, verdict_of
from riskaudit.results.words import COMPARED, Riskier, riskier_end
from riskaudit.statistics.summaries import class_rows, inequalities

_EXCLUSIVE = "revealed_fraction and posterior_rmse exclude each other"
_STRICTNESS = {"allow": 0, "warn": 1, "block": 2}
# Names that limits had before.
RENAMED = {"max_revealed_fraction": "max_revealed", "min_posterior_rmse": "min_rmse"}
_LIMITS = {field.name for field in fields(Policy)} & {"max_revealed", "min_rmse", "max_class_gap", "max_total_revealed"}


def recompute(result: AuditResult) -> tuple[AuditResult, list[str]]:
    """The audit with all conclusions drawn from its numbers, and what the file said otherwise, a sentence each.

    Raises:
        ResultError: the file holds limits that aren't any.
    """
    contradictions: list[str] = []
    rows = _rows(result, contradictions)
    result = result.model_copy(update={"samples": rows})
    updates = {
        "samples": rows,
        "classes": _classes(result, contradictions),
        "fairness": _fairness(result, contradictions),
        "noise_needed": _noise_needed(result, contradictions),
        "policy": _policy(result, contradictions),
    }
    return result.model_copy(update=updates), contradictions


def _rows(result: AuditResult, contradictions: list[str]) -> Sequence[SampleRow]:
    changed: Counter[tuple[str, str]] = Counter()
    rows = kept_as(result.samples, (_judged(row, result, changed) for row in result.samples))
    excluded = sum(row.reason == _EXCLUSIVE for row in rows)
    repeated = len(rows) - len({row.id for row in rows})
    if repeated:
        contradictions.append(f"{repeated} of {len(rows)} samples carry the id of another")
    if excluded:
        contradictions.append(f"of {count(excluded, 'sample')} {_EXCLUSIVE}")
    contradictions += [
        f"of {count(number, 'sample')} the file says {_word(said)}, the numbers say {_word(derived)}"
        for (said, derived), number in changed.items()
    ]
    return rows


def _judged(row: SampleRow, result: AuditResult, changed: Counter[tuple[str, str]]) -> SampleRow:
    """A row with the verdict that its numbers ask for, and without what no one asked to see; changes are counted."""
    row, update = _usable(row, result), dict[str, object]()
    derived = verdict_of(row, result.settings.thresholds, result.release.defended, attacker_of(result.release))
    if derived == "low" and result.doubts:
        derived = "not_assessed"
    # A reason why a sample isn't assessed stands even where it has numbers.
    withheld = row.verdict == "not_assessed" and row.reason is not None and row.reason != _EXCLUSIVE
    if derived != row.verdict and not withheld:
        changed[row.verdict, derived] += 1
        update["verdict"] = derived
    if not isinstance(row.target, int) and row.target is not None and row.image_png is None:
        # Of an autoencoder it is the private input.
        update["target"] = None
    return row.model_copy(update=update) if update else row


def _usable(row: SampleRow, result: AuditResult) -> SampleRow:
    """The row, without the headline numbers where they can't both be true."""
    if result.prior.kind != "isotropic" or not exclusive(row, result.prior.std):
        return row
    compared = [proxy for proxy in COMPARED if proxy in row.proxies]
    failed = {proxy: row.proxies[proxy].model_copy(update={"status": "failed"}) for proxy in compared}
    return row.model_copy(update={"proxies": {**row.proxies, **failed}, "reason": _EXCLUSIVE})


def _word(verdict: str) -> str:
    return verdict.replace("_", " ")


def _classes(result: AuditResult, contradictions: list[str]) -> list[ClassRow]:
    listed = list(dict.fromkeys(proxy for row in result.classes for proxy in row.proxies))
    derived = class_rows(result.samples, result.data.class_names, result.settings.seed, listed)
    if result.classes and _summary(result.classes) != _summary(derived):
        contradictions.append("the class means in the file are not those of its samples")
    return derived


def _summary(rows: list[ClassRow]) -> dict[tuple[int, str], tuple[str, ...]]:
    return {
        (row.target, proxy): tuple(f"{value:.5g}" for value in (statistic.mean, statistic.min, statistic.max))
        for row in rows
        for proxy, statistic in row.proxies.items()
    }


def _fairness(result: AuditResult, contradictions: list[str]) -> Fairness:
    riskier = {proxy: riskier_end(proxy, result.proxies) for proxy in result.fairness.proxies}
    derived = inequalities(result.samples, riskier)
    named = {name for each in (result.fairness, derived) for one in each.proxies.values() for name in one.worst_samples}
    by_id = {row.id: row for row in result.samples if row.id in named}
    for proxy, said in result.fairness.proxies.items():
        # By value: equal ones may stand in any order.
        names = [said.worst_samples[:1], derived.proxies[proxy].worst_samples[:1]]
        values = [[_value(by_id.get(name), proxy, riskier[proxy]) for name in some] for some in names]
        if values[0] != values[1]:
            contradictions.append(f"the file names another sample as the most exposed by {proxy} than its numbers do")
    return derived


def _value(row: SampleRow | None, proxy: str, riskier: Riskier) -> float | None:
    return None if row is None else position(row.proxies.get(proxy), riskier)


def _noise_needed(result: AuditResult, contradictions: list[str]) -> list[NoiseNeed]:
    """Without noise levels that the audit's own numbers refute: as much as it had, and samples over the limit."""
    noise = result.release.noise
    if noise is None or noise.law != "gaussian":
        return result.noise_needed
    headline = headline_of(attacker_of(result.release))
    estimates = (row.proxies[headline] for row in result.samples if headline in row.proxies)
    highs = [estimate.value if estimate.high is None else estimate.high for estimate in estimates]
    most = max((high for high in highs if high is not None), default=0.0)
    plausible = [
        need
        for need in result.noise_needed
        if not (need.std < noise.std * (1 - 1e-3) and most > need.max_revealed + 1e-3)
    ]
    if len(plausible) < len(result.noise_needed):
        contradictions.append("the file recommends less noise than was audited and found not to be enough")
    return plausible


def _policy(result: AuditResult, contradictions: list[str]) -> PolicyOutcome | None:
    said = result.policy
    if said is None or not (said.limits or said.forbid_checks):
        return said
    limits = {RENAMED.get(name, name): value for name, value in said.limits.items()}
    unknown = sorted(set(limits) - _LIMITS)
    try:
        named = {name: limits[name] for name in limits if name in _LIMITS}
        policy = Policy.from_mapping(
            {**named, "max_unassessed": said.max_unassessed, "forbid_checks": said.forbid_checks}
        )
    except SettingsError as error:
        raise ResultError(f"expected limits that can be kept in the audit's policy: {error}") from error
    derived = policy.decide(result, said.source)
    if unknown:
        reason = f"{len(unknown)} limits in the file are not known here"
        derived = derived.model_copy(update={"decision": "block", "reasons": [*derived.reasons, reason]})
    if _STRICTNESS[derived.decision] > _STRICTNESS[said.decision]:
        contradictions.append(f"the file says {said.decision}, the numbers say {derived.decision}")
        return derived.model_copy(update={"limits": said.limits, "max_unassessed": said.max_unassessed})
    if _STRICTNESS[derived.decision] < _STRICTNESS[said.decision]:
        contradictions.append(f"the file says {said.decision}, which its numbers don't explain; it stands")
        return said
    if _of_checks(said) != _of_checks(derived):
        contradictions.append(f"the file says {said.decision} for other findings of forbidden checks than it holds")
        said = said.model_copy(update={"reasons": list(dict.fromkeys([*derived.reasons, *said.reasons]))})
    return said.model_copy(update={"exceeded": derived.exceeded})


def _of_checks(outcome: PolicyOutcome) -> set[str]:
    """Reasons by forbidden checks, which hold no number that versions may round in another way."""
    return {reason for reason in outcome.reasons if reason.startswith(FORBIDDEN)}
