"""What an audit found, in a few lines on stdout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import typer

from riskaudit.cli.options import in_options
from riskaudit.formatting import count, number, percent
from riskaudit.report.sections.protect import Recommendation
from riskaudit.results import Attacker, AuditResult, Estimate, SampleRow
from riskaudit.results.checks import findings_in_the_clear, ids_in_the_clear
from riskaudit.results.facts import Facts
from riskaudit.results.tables import most_exposed
from riskaudit.results.verdicts import attacker_of, error_of, headline_of, tokens_of
from riskaudit.results.words import riskier_end, sign_mark
from riskaudit.studies.verify.record import STRONGEST, AgreementRow, VerifyStudy

VERDICTS = ("high", "medium", "low", "not_assessed")


def _span(estimate: Estimate, show: Callable[[float], str]) -> str:
    shown = "unknown" if estimate.value is None else show(estimate.value)
    if estimate.low is None or estimate.high is None:
        return shown
    if estimate.value is None:
        return f"{show(estimate.low)} to {show(estimate.high)}"
    return f"{shown} ({show(estimate.low)} to {show(estimate.high)})"


def print_summary(result: AuditResult, files: list[Path]) -> None:
    """What the audit found, in a few lines on stdout."""
    if not result.release.defended:
        typer.echo("undefended: assume full disclosure (samples are only ranked, at the reference noise)")
    _print_clear(result)
    counts: Counter[str] = Counter(row.verdict for row in result.samples)
    total = len(result.samples)
    verdicts = ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in VERDICTS if counts[name])
    typer.echo(f"risk of {total} {'sample' if total == 1 else 'samples'}: {verdicts}")
    attacker = attacker_of(result.release)
    headline, error_id = headline_of(attacker), error_of(attacker)
    revealed = result.fairness.proxies.get(headline)
    if revealed is not None and revealed.worst_samples:
        row = next(row for row in result.samples if row.id == revealed.worst_samples[0])
        rmse, share = row.proxies[error_id], row.proxies[headline]
        if rmse.assessed and share.assessed:
            revealed_span, error = _span(share, percent), _span(rmse, number)
            who = f"{attacker} attacker: " if attacker is not None else ""
            typer.echo(f"{who}worst sample {row.id}: {revealed_span} of the input revealed, posterior error {error}")
            if attacker is not None:
                _print_other(result, row, attacker)
            if revealed.note is not None and len(result.samples) > 1:
                typer.echo(f"note: {revealed.note}")
    _print_tokens(result)
    _print_column(result)
    _print_leaks(result)
    _print_noise(result)
    study = result.studies.get(VerifyStudy)
    if study is not None:
        _print_verify(study, result)
    for warning in result.warnings:
        typer.echo(f"note: {in_options(warning)}")
    if result.policy is not None:
        words = {"allow": "within policy", "warn": "policy warning", "block": "policy exceeded"}
        typer.echo(f"{words[result.policy.decision]}: {in_options('; '.join(result.policy.reasons))}")
    for path in files:
        typer.echo(f"wrote {path}")


def _print_clear(result: AuditResult) -> None:
    """Whose inputs can be read off what leaves."""
    findings = findings_in_the_clear(result.checks)
    if findings:
        ids, checks = ids_in_the_clear(findings), ", ".join(dict.fromkeys(finding.id for finding in findings))
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        typer.echo(f"in the clear, by {checks}: {len(ids)} of {count(len(result.samples), 'sample')}: {shown}")


def _print_tokens(result: AuditResult) -> None:
    """How many of the texts' own tokens are told, and the most exposed text."""
    name = tokens_of(attacker_of(result.release))
    estimates = [(row.proxies[name], row.id) for row in result.samples if name in row.proxies]
    known = [(each.ends[1], each, sample) for each, sample in estimates if each.ends[1] is not None]
    if known:
        _, worst, sample = max(known, key=lambda triple: (triple[0] or 0.0, triple[2]))
        typer.echo(
            f"tokens: an attacker who knows all others tells {_span(worst, percent)} of those of sample {sample}"
        )


def _print_column(result: AuditResult) -> None:
    """Of a table, the column of which the most is revealed in any sample; names of columns are no one's data."""
    exposed = [(row.id, *found) for row in result.samples if (found := most_exposed(row.columns)) is not None]
    known = [(name, column, high) for name, column, risk in exposed if (high := risk.revealed.ends[1]) is not None]
    if known:
        sample, column, high = max(known, key=lambda each: each[2])
        typer.echo(f"worst column {column}: up to {percent(high)} revealed in sample {sample}; verdicts go by columns")


def _print_leaks(result: AuditResult) -> None:
    """What else leak checks say: of features, labels, subspaces and the like."""
    clear, others = findings_in_the_clear(result.checks), dict[str, set[str]]()
    for finding in result.checks:
        if finding.status == "leak" and finding not in clear:
            others.setdefault(finding.id, set()).update(finding.sample_ids)
    if others:
        parts = (f"{check} of {len(ids)}" for check, ids in others.items())
        typer.echo(
            f"{'further ' * bool(clear)}leak checks that found something, and on how many samples: {', '.join(parts)}"
        )


def _print_noise(result: AuditResult) -> None:
    """The one noise level to use, where samples are exposed as it is."""
    recommended = Recommendation(Facts(result))
    if recommended.is_called_for and recommended.std is not None:
        typer.echo(
            f"recommended: gaussian noise of {recommended.std} per released entry, the least, rounded up, that "
            f"{recommended.purpose}"
        )


def _print_other(result: AuditResult, row: SampleRow, attacker: Attacker) -> None:
    """The same sample for the attacker whose numbers don't decide."""
    other: Attacker = "outsider" if attacker == "informed" else "informed"
    share, rmse = row.proxies.get(headline_of(other)), row.proxies.get(error_of(other))
    if share is not None and rmse is not None and share.assessed and rmse.assessed:
        size = result.release.upload_size
        typer.echo(
            f"{other} (knows {'none' if other == 'outsider' else 'all others'} of the "
            f"{count(size or 1, 'sample')} of an upload): {_span(share, percent)} of the same input, "
            f"posterior error {_span(rmse, number)}"
        )


def _print_verify(study: VerifyStudy, result: AuditResult) -> None:
    control = study.control
    words = {
        "passed": "positive control passed: the attacks reconstruct an undefended network",
        "failed": "positive control FAILED: the attacks are broken, so that they fail here says nothing",
        "skipped": f"positive control skipped: {control.reason}",
    }
    typer.echo(words[control.status])
    for row in study.agreement:
        if row.attack == STRONGEST and row.metric == "rmse" and row.proxy == "map_rmse" and row.noise_std > 0:
            rank = "unknown" if row.spearman is None else f"{row.spearman:.2f}{_sign(result, row)}"
            ratio = "unknown" if row.tightness_median is None else number(row.tightness_median)
            typer.echo(
                f"noise {row.noise_std:g}: strongest attack / predicted error {ratio} in the "
                f"median of {count(row.num_samples, 'sample')}, rank correlation {rank}"
            )


def _sign(result: AuditResult, row: AgreementRow) -> str:
    """The mark of a rank correlation that contradicts what the proxy says of itself: errors are lower, the worse."""
    if row.spearman is None:
        return ""
    riskier = riskier_end(row.proxy, result.proxies)
    return sign_mark(row.spearman, row.low, row.high, riskier, higher_is_better=False)
