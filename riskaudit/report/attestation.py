"""An `Attestation` as JSON and as SARIF. Never loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from riskaudit.errors import SettingsError

if TYPE_CHECKING:
    from riskaudit.results.attestation import Attestation

FILE_NAMES = {"json": "attestation.json", "sarif": "attestation.sarif"}
FORMATS = tuple(FILE_NAMES)


def render_attestation(
    result: Attestation, formats: Sequence[str] = ("json",), *, spelling: Callable[[str], str] = str
) -> dict[str, bytes]:
    """Render an attestation.

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


def _rendered(result: Attestation, name: str, spelling: Callable[[str], str]) -> bytes:
    if name == "json":
        return result.to_json().encode()
    from riskaudit.report.sarif.attestation import attestation_to_sarif

    return attestation_to_sarif(result, spelling)
