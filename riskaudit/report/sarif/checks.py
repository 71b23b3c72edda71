"""The findings of exact leak checks: what stands in the clear, and what could not be checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from riskaudit.formatting import count, number, percent, sentence
from riskaudit.report.sarif.log import Artifact, Finding, Level, Rule
from riskaudit.results.checks import CHECK_IDS, RECOVERED, CheckFinding, findings_in_the_clear, relative_error

_PAGES = "docs/checks/"
_LISTED = 12


def check_findings(
    checks: Sequence[CheckFinding], files: Sequence[Artifact], release: str
) -> Iterator[tuple[Rule, Finding]]:
    """Rules and findings of everything that isn't clear.

    Args:
        checks: of an audit.
        files: that were audited.
        release: its description, which tells findings of one checkpoint apart.
    """
    clear = findings_in_the_clear(list(checks))
    for check in checks:
        if check.status in ("leak", "failed"):
            yield (
                _rule(check),
                Finding(
                    rule=f"check/{check.id}",
                    message=_message(check),
                    artifacts=files,
                    identity=(release, check.upload, check.recovers, check.status, relative_error(check) is None),
                    level=_level(check, is_input=check in clear),
                    layer=check.layer,
                    samples=check.sample_ids,
                ),
            )


def _rule(check: CheckFinding) -> Rule:
    page = f"{_PAGES}{check.id}.md" if check.id in CHECK_IDS else f"{_PAGES}README.md"
    text = f"{check.title}: {RECOVERED[check.recovers]} can be read off what leaves, without attack or prior."
    return Rule(f"check/{check.id}", check.title, text, "The page says what to do.", page)


def _level(check: CheckFinding, *, is_input: bool) -> Level:
    """An input in the clear is an error; what says less of a sample, and what couldn't be checked, a warning."""
    if check.exactness == "if_server_changes_model":
        return "note"
    return "error" if check.status == "leak" and is_input else "warning"


def _message(check: CheckFinding) -> str:
    where = "" if check.upload is None else f" of upload {check.upload}"
    if check.status == "failed":
        return sentence(f"{check.title}: could not be checked{where}: {check.reason or 'no reason is known'}")
    rest = len(check.sample_ids) - _LISTED
    listed = ", ".join(check.sample_ids[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
    error = "" if check.predicted_rmse is None else f", with an error of {number(check.predicted_rmse)} by the noise"
    nearly = relative_error(check)
    error += "" if nearly is None else f", with a relative error of {percent(nearly)} at most"
    samples = f"{count(len(check.sample_ids), 'sample')}{where} ({listed})" if listed else f"the samples{where}"
    return sentence(f"{check.title}: {RECOVERED[check.recovers]} can be read off what leaves of {samples}{error}")
