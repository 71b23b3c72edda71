"""Reports: an `AuditResult` in, HTML, PDF, JSON, CSV and Markdown out. Never loads torch.

    AuditResult -> build.py (sections/*) -> Document -> html.py, pdf.py, markdown.py
                -> csv.py

The same result gives the same bytes. Nothing is read or written but memory (and a temporary folder
for the PDF), and nothing goes over the network.
"""

from __future__ import annotations

from collections.abc import Sequence

from riskaudit.errors import SettingsError
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
    contradictions: Sequence[str] = (),
) -> dict[str, bytes]:
    """Render an audit; ``baseline`` is an earlier one to compare with.

    ``contradictions`` says where a file disagreed with its own numbers (`riskaudit.report.recomputation`).

    Returns:
        File name to content, in the order of ``formats``.

    Raises:
        SettingsError: an unknown format.
    """
    for name in formats:
        if name not in FORMATS:
            raise SettingsError(f"expected a report format out of {', '.join(FORMATS)}, found {name!r}")
    # Imported here so that `riskaudit --help` doesn't wait for matplotlib.
    from riskaudit.report.build import build_document, printable_result

    document = build_document(result, baseline, contradictions)
    files: dict[str, bytes] = {}
    for name in dict.fromkeys(formats):
        if name == "json":
            content = result.to_json().encode()
        elif name == "csv":
            from riskaudit.report.csv import to_csv

            content = to_csv(printable_result(result))
        elif name == "html":
            from riskaudit.report.html import to_html

            content = to_html(document)
        elif name == "pdf":
            from riskaudit.report.pdf import to_pdf

            content = to_pdf(document)
        else:
            from riskaudit.report.markdown import to_markdown

            content = to_markdown(document)
        files[FILE_NAMES[name]] = content
    return files
