"""The findings of an `Attestation`: tests that reject or tell nothing, and what is wrong with the declaration."""

from __future__ import annotations

from collections.abc import Callable

from riskaudit.formatting import sentence
from riskaudit.report.sarif.log import Artifact, Finding, Rule, to_sarif
from riskaudit.results.attestation import Attestation, AttestationTest, LintFinding, VectorFile

PAGE = "docs/attest.md"
_ADVICE = {
    "norm": "Clip to the declared norm before the noise is added.",
    "noise": "Add the declared noise to every entry of what leaves, or declare what is added.",
    "contract": "Send the trained parameters' tensors alone, in their own shapes and dtypes.",
}


def attestation_to_sarif(result: Attestation, spelling: Callable[[str], str] = str) -> bytes:
    """A log of one attestation; ``spelling`` is that of parameters' names, see `riskaudit.report.render`."""
    tests = [*result.rejections, *result.undecided]
    rules = [*(_test_rule(test) for test in tests), *(_lint_rule(finding) for finding in result.findings)]
    update = _artifact(result.update)
    files = [update, *([] if result.received is None else [_artifact(result.received)])]
    findings = [
        Finding(
            rule=f"attestation/{test.id}",
            message=sentence(spelling(_words(test, result))),
            artifacts=files if test.claim == "contract" else files[:1],
            identity=(result.declared.release, test.tensor),
            level="error" if test.status == "not_as_declared" else "warning",
            layer=test.tensor,
        )
        for test in tests
    ]
    findings += [
        Finding(
            rule=f"lint/{finding.id}",
            message=f"{sentence(spelling(finding.message))} {spelling(finding.advice)}",
            artifacts=[update],
            identity=(result.declared.release,),
            level=finding.severity,
        )
        for finding in result.findings
    ]
    return to_sarif(result.tool, rules, findings)


def _words(test: AttestationTest, result: Attestation) -> str:
    words = test.reason if test.tensor is None else f"{test.tensor}: {test.reason}"
    remedy = f"; give {' or '.join(result.would_tell)}" if test.status == "could_not_tell" and result.would_tell else ""
    return words + remedy


def _artifact(file: VectorFile) -> Artifact:
    return Artifact(file.name, file.sha256)


def _test_rule(test: AttestationTest) -> Rule:
    text = f"{test.title}: what is about to leave is held to what was declared of its {test.claim}."
    return Rule(f"attestation/{test.id}", test.title, text, _ADVICE[test.claim], PAGE)


def _lint_rule(finding: LintFinding) -> Rule:
    text = f"{finding.title}: the declaration, the policy or the guard's settings hardly say what is meant."
    return Rule(f"lint/{finding.id}", finding.title, text, finding.advice, PAGE, finding.severity)
