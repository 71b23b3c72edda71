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
from riskaudit.errors import ResultError
from riskaudit.files import add_to_folder
from riskaudit.formatting import printable

NAME, COLUMNS = "audit.json", "samples.parquet"


@command
def report(
    rendering: RenderingOptions,
    console: ConsoleOptions,
    *,
    audit_json: Annotated[Path, typer.Argument(metavar="AUDIT.json", help="An audit that scan wrote, or its folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the rendered files (default: the audit's own).")
    ] = None,
) -> int:
    """Render an audit.json again as HTML, PDF, CSV, Markdown or SARIF.

    Verdicts and the policy's decision are drawn from the numbers; exit code 1 where the file says otherwise.
    """
    from riskaudit.report import render_marked
    from riskaudit.results import AuditResult

    audit_json = _audit_in(audit_json)
    result = AuditResult.load(audit_json)
    earlier = None if rendering.baseline is None else AuditResult.load(_audit_in(rendering.baseline))
    load_commands()
    folder = out or audit_json.parent
    # Beside its table of samples the file stays as it is.
    kept = out is None and (folder / COLUMNS).exists()
    formats = [name for name in rendering.format if not (kept and name == "json")]
    files, contradictions = render_marked(result, formats, earlier, in_options)
    # What the audit's owner alone may read stays so.
    private = not audit_json.stat().st_mode & 0o077
    add_to_folder(folder, files, input_paths([audit_json, rendering.baseline]), private=private)
    if not console.quiet:
        for name in files:
            typer.echo(f"wrote {folder / name}")
    for contradiction in contradictions:
        typer.echo(f"riskaudit: {printable(contradiction)}", err=True)
    return EXIT_EXCEEDED if contradictions else 0


def _audit_in(path: Path) -> Path:
    """The audit itself, where its folder is given.

    Raises:
        ResultError: the folder holds none.
    """
    if not path.is_dir():
        return path
    if (path / NAME).is_file():
        return path / NAME
    found = sorted(each.name for each in path.glob("*.json"))
    listed = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    advice = f"; it holds {printable(listed)}: name the file that is an audit" if found else ""
    raise ResultError(f"expected {NAME} in the folder {printable(str(path))}, found none{advice}")
