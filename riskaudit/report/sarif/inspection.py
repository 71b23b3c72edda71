"""The findings of an `InspectionResult`: signs that are flagged, and those that came to no number."""

from __future__ import annotations

from collections.abc import Callable

from riskaudit.formatting import sentence
from riskaudit.report.build import printable_result
from riskaudit.report.sarif.log import Artifact, Finding, Rule, to_sarif
from riskaudit.results.inspection import NO_PROOF, InspectionResult, SignInfo, SignRow

PAGE = "docs/inspect.md"


def inspection_to_sarif(result: InspectionResult, spelling: Callable[[str], str] = str) -> bytes:
    """A log of one inspection; ``spelling`` is that of parameters' names, see `riskaudit.report.render`."""
    result = printable_result(result, spelling)
    files = [Artifact(result.checkpoint.name, result.checkpoint.sha256)]
    if result.compared_with.previous is not None:
        files.append(Artifact(result.compared_with.previous.name, result.compared_with.previous.sha256))
    infos = {info.id: info for info in result.sign_infos}
    rows = [*result.flags, *result.failures]
    findings = [
        Finding(
            rule=f"inspection/{row.id}",
            message=f"{sentence(row.reason)} {NO_PROOF}",
            artifacts=files,
            identity=(row.status,),
            level="error" if row.flagged else "warning",
            layer=row.layer,
        )
        for row in rows
    ]
    return to_sarif(result.tool, [_rule(row, infos.get(row.id)) for row in rows], findings)


def _rule(row: SignRow, info: SignInfo | None) -> Rule:
    title, text = (row.id, row.id) if info is None else (info.title, sentence(info.summary))
    advice = "Don't train on the model before you know how its weights came about."
    return Rule(f"inspection/{row.id}", title, text, advice, PAGE)
