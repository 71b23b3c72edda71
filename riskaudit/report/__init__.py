"""Reports: an `AuditResult` in, HTML, PDF, JSON, CSV, Markdown and SARIF out. Never loads torch.

    AuditResult -> build.py (sections/*, studies/*/section.py) -> Document -> html.py, pdf.py, markdown.py
                -> csv.py, sarif/

The same result gives the same bytes. Nothing is read or written but memory (and a temporary folder
for the PDF), and nothing goes over the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from riskaudit.report.formats import render_formats

if TYPE_CHECKING:
    from riskaudit.document.blocks import Document
    from riskaudit.results import AuditResult


@dataclass(frozen=True)
class _Report:
    """What formats are made of; of many samples the document takes its time, and JSON and CSV don't need it."""

    result: AuditResult
    baseline: AuditResult | None
    contradictions: Sequence[str]
    spelling: Callable[[str], str]

    @cached_property
    def document(self) -> Document:
        from riskaudit.report.build import build_document

        return build_document(self.result, self.baseline, self.contradictions, self.spelling)


def _document_as(renderer: str) -> Callable[[_Report], bytes]:
    # Resolved when it is called, so that `riskaudit --help` doesn't wait for matplotlib.
    return lambda report: bytes(resolve_name(f"riskaudit.document.{renderer}")(report.document))


def _csv(report: _Report) -> bytes:
    from riskaudit.report.build import printable_result
    from riskaudit.report.csv import to_csv

    return to_csv(printable_result(report.result, report.spelling))


def _sarif(report: _Report) -> bytes:
    from riskaudit.report.build import printable_result
    from riskaudit.report.sarif.audit import audit_to_sarif

    return audit_to_sarif(printable_result(report.result, report.spelling), report.contradictions)


_FORMATS: dict[str, tuple[str, Callable[[_Report], bytes]]] = {
    "html": ("audit.html", _document_as("html:to_html")),
    "pdf": ("audit.pdf", _document_as("pdf:to_pdf")),
    "json": ("audit.json", lambda report: report.result.to_json().encode()),
    "csv": ("samples.csv", _csv),
    "md": ("audit.md", _document_as("markdown:to_markdown")),
    "sarif": ("audit.sarif", _sarif),
}
FORMATS = tuple(_FORMATS)
FILE_NAMES = {name: file_name for name, (file_name, _) in _FORMATS.items()}

__all__ = ["FILE_NAMES", "FORMATS", "render"]


def render(
    result: AuditResult,
    formats: Sequence[str] = ("html", "pdf", "json"),
    *,
    baseline: AuditResult | None = None,
    spelling: Callable[[str], str] = str,
) -> dict[str, bytes]:
    """Render an audit; ``baseline`` is an earlier one to compare with.

    Verdicts, the decision and summaries are drawn from the numbers; a result that says otherwise is marked.

    Args:
        result: of an audit.
        formats: out of `FORMATS`.
        baseline: an earlier audit of the same.
        spelling: puts other names for parameters into a sentence that names them as Python does, ``arch`` in
            backticks; the command line has its options there. JSON keeps Python's.

    Returns:
        File name to content, in the order of ``formats``.

    Raises:
        SettingsError: an unknown format.
        ResultError: the result holds limits that can't be kept.
    """
    return render_marked(result, formats, baseline, spelling)[0]


def render_marked(
    result: AuditResult,
    formats: Sequence[str],
    baseline: AuditResult | None = None,
    spelling: Callable[[str], str] = str,
) -> tuple[dict[str, bytes], list[str]]:
    """`render`, and where the result disagreed with its own numbers, a sentence each."""
    from riskaudit.report.recomputation import recompute

    result, contradictions = recompute(result)
    if baseline is not None:
        baseline, _ = recompute(baseline)
    report = _Report(result, baseline, contradictions, spelling)
    return render_formats(_FORMATS, formats, report), contradictions
