"""An `InspectionResult` as one self-contained HTML page, as JSON and as SARIF. Never loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from riskaudit.report.formats import render_formats

if TYPE_CHECKING:
    from riskaudit.results.inspection import InspectionResult


def _html(result: InspectionResult, spelling: Callable[[str], str]) -> bytes:
    from riskaudit.document.html import to_html
    from riskaudit.report.inspection.page import build_inspection

    return to_html(build_inspection(result, spelling))


def _json(result: InspectionResult, spelling: Callable[[str], str]) -> bytes:
    return result.to_json().encode()


def _sarif(result: InspectionResult, spelling: Callable[[str], str]) -> bytes:
    from riskaudit.report.sarif.inspection import inspection_to_sarif

    return inspection_to_sarif(result, spelling)


_FORMATS = {
    "html": ("inspection.html", _html),
    "json": ("inspection.json", _json),
    "sarif": ("inspection.sarif", _sarif),
}
FORMATS = tuple(_FORMATS)


def render_inspection(
    result: InspectionResult, formats: Sequence[str] = ("html", "json"), *, spelling: Callable[[str], str] = str
) -> dict[str, bytes]:
    """Render an inspection in `FORMATS`; arguments, result and errors are those of `riskaudit.report.render`."""
    return render_formats(_FORMATS, formats, result, spelling)
