"""``riskaudit report``: render an audit.json again, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riskaudit.cli import options as opt
from riskaudit.errors import OutputError
from riskaudit.files import write_file
from riskaudit.report import render
from riskaudit.results import AuditResult


def report(
    audit_json: Annotated[Path, typer.Argument(metavar="AUDIT.json", help="An audit that scan wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the rendered files (default: the audit's own).")
    ] = None,
    format: opt.FormatOption = None,
    baseline: opt.BaselineOption = None,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> int:
    """Render an audit.json again as HTML, PDF, CSV or Markdown."""
    result = AuditResult.load(audit_json)
    earlier = None if baseline is None else AuditResult.load(baseline)
    chosen = opt.formats_of(format) if format else ["html", "pdf"]
    files = render(result, chosen, baseline=earlier)
    folder = out or audit_json.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't write to {folder}: {error.strerror or error}; choose another --out") from error
    for name, content in files.items():
        write_file(folder / name, content)
        if not quiet:
            typer.echo(f"wrote {folder / name}")
    return 0
