"""First part of section 3: what stands in the clear in what leaves, by exact checks rather than by proxies."""

from __future__ import annotations

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Paragraph, Subheading, Table
from riskaudit.formatting import count, given, number, percent, sentence, short
from riskaudit.results.checks import (
    RECOVERED,
    CheckFinding,
    findings_in_the_clear,
    ids_in_the_clear,
    relative_error,
)
from riskaudit.results.facts import Facts

STATUS_WORDS = {
    "leak": "in the clear",
    "clear": "not in the clear",
    "not_applicable": "doesn't apply",
    "failed": "could not be checked",
}
_LISTED = 12


def clear_sentence(facts: Facts) -> str | None:
    """How many samples' inputs can be read off what leaves; None where none can, as far as was checked."""
    findings = findings_in_the_clear(facts.result.checks)
    if not findings:
        return None
    limits = ["a factor"] if all(finding.recovers == "scaled_input" for finding in findings) else []
    errors = [error for error in map(relative_error, findings) if error is not None]
    limits += [f"an error of {percent(max(errors))}"] if errors else []
    inexact = [finding for finding in findings if finding.exactness != "exact" and relative_error(finding) is None]
    limits += ["the noise"] if inexact else []
    how = f"up to {' and '.join(limits)}" if limits else "exactly"
    checks = ", ".join(dict.fromkeys(finding.id for finding in findings))
    return (
        f"{len(ids_in_the_clear(findings)):,} of {count(facts.num_samples, 'sample')} stand in the clear: the input "
        f"can be read off what leaves {how}, whatever the proxies say of the average ({checks})"
    )


def clear_blocks(facts: Facts) -> list[Block]:
    """What every check says, leaks first; nothing where no check was run."""
    findings = facts.result.checks
    if not findings:
        return []
    blocks: list[Block] = [Subheading("What stands in the clear", brief=True)]
    leaks = [finding for finding in findings if finding.status == "leak"]
    found = clear_sentence(facts)
    if found is None:
        found = "No sample's input can be read off what leaves directly, as far as the checks below go"
    text = (
        f"{sentence(found)} Each check recovers what it names from what leaves alone, and compares it with the truth; "
        "it needs no attack, no prior and no spectrum."
    )
    blocks.append(Paragraph(text, brief=True))
    if leaks:
        blocks.append(_table("in-the-clear", "What can be read off what leaves", facts, leaks, brief=True))
    others = [finding for finding in findings if finding.status != "leak"]
    if others:
        blocks.append(_table("not-in-the-clear", "What can't, and why", facts, others, folded=True))
    return blocks


def _table(
    table_id: str, caption: str, facts: Facts, findings: list[CheckFinding], folded: bool = False, brief: bool = False
) -> Table:
    columns: tables.Columns[CheckFinding] = [
        tables.text("Check", lambda finding: finding.title, brief=True),
        tables.text("Id", lambda finding: finding.id),
        tables.text("Layer", lambda finding: finding.layer or "–", brief=True),
        tables.text(
            "Upload",
            lambda finding: "–" if finding.upload is None else str(finding.upload),
            brief=True,
            shown=facts.is_joint,
        ),
        tables.text("Status", lambda finding: STATUS_WORDS[finding.status], shown=folded),
        tables.text("What", _recovered, brief=True, shown=not folded),
        tables.text("Error", _error, brief=True, shown=not folded),
        tables.text("Samples", _samples, brief=True, shown=not folded),
        tables.text("Why", lambda finding: sentence(finding.reason or "–"), shown=folded),
    ]
    return tables.table(
        table_id, caption, findings, columns, layout="dense", folded=folded, brief=brief, print_rows=40, brief_rows=12
    )


def _recovered(finding: CheckFinding) -> str:
    known = finding.details.get("scale_known")
    words = RECOVERED[finding.recovers]
    if not isinstance(known, dict):
        return words
    return f"{words}, which the data's range gives for {sum(value > 0 for value in known.values()):,} of {len(known):,}"


def _error(finding: CheckFinding) -> str:
    if finding.predicted_rmse is not None:
        return f"{number(finding.predicted_rmse)} by the noise"
    error = relative_error(finding)
    if error is not None:
        return f"{percent(error)} at most"
    return "none" if finding.exactness == "exact" else "known up to the noise"


def _samples(finding: CheckFinding) -> str:
    listed = ", ".join(short(sample) for sample in finding.sample_ids[:_LISTED])
    rest = len(finding.sample_ids) - _LISTED
    return f"{listed} and {given(rest)} more" if rest > 0 else listed or "–"
