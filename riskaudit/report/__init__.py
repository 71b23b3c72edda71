"""Reports: an `AuditResult` in, HTML, PDF, JSON, CSV and Markdown out. Never loads torch.

    AuditResult -> build.py (sections/*) -> Document -> html.py, pdf.py, markdown.py
                -> csv.py

The same result gives the same bytes. Nothing is read or written but memory (and a temporary folder
for the PDF), and nothing goes over the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from riskaudit.errors import SettingsError

if TYPE_CHECKING:
    from riskaudit.document.blocks import Document
    from riskaudit.results import AuditResult

FORMATS = ("html", "pdf", "json", "csv", "md")
FILE_NAMES: dict[str, str] = {
    "html": "audit.html",
    "pdf": "audit.pdf",
    "json": "audit.json",
    "csv": "samples.csv",
    "md": "audit.md",
}

__all__ = ["FILE_NAMES", "FORMATS", "render"]


def render(
    result: AuditResult,
    formats: Sequence[str] = ("html", "pdf", "json"),
    *,
    baseline: AuditResult | None = None,
) -> dict[str, bytes]:
    """Render an audit; ``baseline`` is an earlier one to compare with.

    Verdicts, the decision and summaries are drawn from the numbers; a result that says otherwise is marked.

    Returns:
        File name to content, in the order of ``formats``.

    Raises:
        SettingsError: an unknown format.
        ResultError: the result holds limits that can't be kept.
    """
    return render_marked(result, formats, baseline)[0]


def render_marked(
    result: AuditResult, formats: Sequence[str], baseline: AuditResult | None = None
) -> tuple[dict[str, bytes], list[str]]:
    """`render`, and where the result disagreed with its own numbers, a sentence each."""
    from riskaudit.report.recomputation import recompute

    result, contradictions = recompute(result)
    if baseline is not None:
        baseline, _ = recompute(baseline)
    return _render(result, formats, baseline, contradictions), contradictions


def _render(
    result: AuditResult, formats: Sequence[str], baseline: AuditResult | None, contradictions: Sequence[str]
) -> dict[str, bytes]:
    for name in formats:
        if name not in FORMATS:
            raise SettingsError(f"expected a report format out of {', '.join(FORMATS)}, found {name!r}")
    # Imported here so that `riskaudit --help` doesn't wait for matplotlib.
    from riskaudit.report.build import build_document, printable_result

    # JSON and CSV don't need it, and of many samples it takes its time.
    @cache
    def document() -> Document:
        return build_document(result, baseline, contradictions)

    files: dict[str, bytes] = {}
    for name in dict.fromkeys(formats):
        if name == "json":
            content = result.to_json().encode()
        elif name == "csv":
            from riskaudit.report.csv import to_csv

            content = to_csv(printable_result(result))
        elif name == "html":
            from riskaudit.document.html import to_html

            content = to_html(document())
        elif name == "pdf":
            from riskaudit.document.pdf import to_pdf

            content = to_pdf(document())
        else:
            from riskaudit.document.markdown import to_markdown

            content = to_markdown(document())
        files[FILE_NAMES[name]] = content
    return files
