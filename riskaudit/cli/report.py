"""``riskaudit report``: render an audit.json again, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riskaudit.cli.app import load_commands
from riskaudit.cli.invocation import input_paths
from riskaudit.cli.models import ConsoleOptions, RenderingOptions
from riskaudit.cli.options import command, in_options
from riskaudit.cli.scan import EXIT_EXCEEDED
from riskaudit.files import add_to_folder


@command
def report(
    rendering: RenderingOptions,
    console: ConsoleOptions,
    *,
    audit_json: Annotated[Path, typer.Argument(metavar="AUDIT.json", help="An audit that scan wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the rendered files (default: the audit's own).")
    ] = None,
) -> int:
    """Render an audit.json again as HTML, PDF, CSV, Markdown or SARIF.

    Verdicts and the policy's decision are drawn from the numbers; exit code 1 where the file says otherwise.
    """
    from riskaudit.formatting import printable
    from riskaudit.report import render_marked
    from riskaudit.results import AuditResult

    result = AuditResult.load(audit_json)
    earlier = None if rendering.baseline is None else AuditResult.load(rendering.baseline)
    load_commands()
    files, contradictions = render_marked(result, rendering.format, earlier, in_options)
    folder = out or audit_json.parent
    # What the audit's owner alone may read stays so.
    private = not audit_json.stat().st_mode & 0o077
    add_to_folder(folder, files, input_paths([audit_json, rendering.baseline]), private=private)
    if not console.quiet:
        for name in files:
            typer.echo(f"wrote {folder / name}")
    for contradiction in contradictions:
        typer.echo(f"riskaudit: {printable(contradiction)}", err=True)
    return EXIT_EXCEEDED if contradictions else 0
