"""``riskaudit docs``: the documentation that is installed with the package."""

from __future__ import annotations

import webbrowser
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from riskaudit.errors import OutputError

SITE = Path(str(files("riskaudit") / "site"))


def docs(
    show_path: Annotated[bool, typer.Option("--path", help="Print where the pages are, and open nothing.")] = False,
) -> int:
    """Open the documentation in a browser; it lies beside the package, and nothing is fetched."""
    page = SITE / "index.html"
    if not page.is_file():
        raise OutputError(
            f"expected the built documentation in {SITE}, found none; a checkout builds it with make docs, and has its "
            "pages as Markdown in the folder docs"
        )
    # A browser may open on another screen than the one that is looked at, or not at all, without saying so.
    typer.echo(str(page))
    if not show_path:
        with suppress(webbrowser.Error):
            webbrowser.open(page.as_uri())
    return 0
