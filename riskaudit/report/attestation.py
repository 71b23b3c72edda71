"""An `Attestation` as JSON and as SARIF. Never loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from riskaudit.report.formats import render_formats

if TYPE_CHECKING:
    from riskaudit.results.attestation import Attestation


def _json(result: Attestation, spelling: Callable[[str], str]) -> bytes:
    return result.to_json().encode()


def _sarif(result: Attestation, spelling: Callable[[str], str]) -> bytes:
    from riskaudit.report.sarif.attestation import attestation_to_sarif

    return attestation_to_sarif(result, spelling)


_FORMATS = {"json": ("attestation.json", _json), "sarif": ("attestation.sarif", _sarif)}
FORMATS = tuple(_FORMATS)


def render_attestation(
    result: Attestation, formats: Sequence[str] = ("json",), *, spelling: Callable[[str], str] = str
) -> dict[str, bytes]:
    """Render an attestation in `FORMATS`; arguments, result and errors are those of `riskaudit.report.render`."""
    return render_formats(_FORMATS, formats, result, spelling)
