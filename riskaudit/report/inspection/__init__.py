"""An `InspectionResult` as one self-contained HTML page, as JSON and as SARIF. Never loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from riskaudit.errors import SettingsError

if TYPE_CHECKING:
    from riskaudit.results.inspection import InspectionResult

FILE_NAMES = {"html": "inspection.html", "json": "inspection.json", "sarif": "inspection.sarif"}
FORMATS = tuple(FILE_NAMES)


def render_inspection(
    result: InspectionResult, formats: Sequence[str] = ("html", "json"), *, spelling: Callable[[str], str] = str
) -> dict[str, bytes]:
    """Render an inspection.

    Args:
        result: to render.
        formats: out of `FORMATS`.
        spelling: of parameters' names in sentences, see `riskaudit.report.render`.

    Returns:
        File name to content, in the order of ``formats``.

    Raises:
        SettingsError: an unknown format.
    """
    for name in formats:
        if name not in FORMATS:
            raise SettingsError(f"expected a format out of {', '.join(FORMATS)}, found {name!r}")
    return {FILE_NAMES[name]: _rendered(result, name, spelling) for name in dict.fromkeys(formats)}


def _rendered(result: InspectionResult, name: str, spelling: Callable[[str], str]) -> bytes:
    if name == "json":
        return result.to_json().encode()
    if name == "sarif":
        from riskaudit.report.sarif.inspection import inspection_to_sarif

        return inspection_to_sarif(result, spelling)
    from riskaudit.document.html import to_html
    from riskaudit.report.inspection.page import build_inspection

    return to_html(build_inspection(result, spelling))
