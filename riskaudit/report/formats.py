"""Results in several formats at once. Never loads torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeAlias

from riskaudit.errors import SettingsError

P = ParamSpec("P")
# By name of a format, the file that it stands in and what makes its content.
Formats: TypeAlias = Mapping[str, tuple[str, Callable[P, bytes]]]


def render_formats(
    known: Formats[P], formats: Sequence[str], /, *arguments: P.args, **keywords: P.kwargs
) -> dict[str, bytes]:
    """File name to content, in the order of ``formats``, each once.

    Args:
        known: all formats that there are.
        formats: some of their names.
        arguments: of what makes the content.
        keywords: likewise.

    Raises:
        SettingsError: an unknown format.
    """
    for name in formats:
        if name not in known:
            raise SettingsError(f"expected a report format out of {', '.join(known)}, found {name!r}")
    chosen = [known[name] for name in dict.fromkeys(formats)]
    return {file_name: render(*arguments, **keywords) for file_name, render in chosen}
