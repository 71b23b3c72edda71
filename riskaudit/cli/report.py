"""``riskaudit report``: render an audit.json again, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riskaudit.cli.app import load_commands
from riskaudit.cli.console import progress, working
from riskaudit.cli.invocation import input_paths
from riskaudit.cli.models import ConsoleOptions, RenderingOptions
from riskaudit.cli.options import command, in_options
from riskaudit.cli.scan import EXIT_EXCEEDED
from riskaudit.errors import ResultError, SettingsError
from riskaudit.files import add_to_folder, check_output_folder, write_folder
from riskaudit.formatting import count, printable

if TYPE_CHECKING:
    from riskaudit.results import AuditResult

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
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="Folder for static pages of all audits below the given folder, with an index.html."
        ),
    ] = None,
) -> int:
    """Render an audit.json again as HTML, PDF, CSV, Markdown or SARIF, or many of them as pages with an index.

    Verdicts and the policy's decision are drawn from the numbers; exit code 1 where the file says otherwise.
    """
    from riskaudit.report import render_marked
    from riskaudit.results import AuditResult

    if bundle is not None:
        if out is not None or rendering.baseline is not None:
            raise SettingsError("--bundle goes with neither --out nor --baseline; give one of them")
        return _bundle(audit_json, bundle, rendering.format, quiet=console.quiet)
    audit_json = _audit_in(audit_json)
    result = AuditResult.load(audit_json)
    earlier = None if rendering.baseline is None else AuditResult.load(_audit_in(rendering.baseline))
    load_commands()
    folder = out or audit_json.parent
    # Beside its table of samples the file stays as it is.
    kept = out is None and (folder / COLUMNS).exists()
    formats = [name for name in rendering.format if not (kept and name == "json")]
    with working(console.quiet, "writing the report"):
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


def _bundle(folder: Path, bundle: Path, formats: Sequence[str], *, quiet: bool) -> int:
    """Write the pages of all audits below a folder.

    Raises:
        RiskauditError: no folder with audits, one that can't be read, or a place that can't be used.
    """
    from riskaudit.report.bundle import audits_under, render_bundle

    if not folder.is_dir():
        raise ResultError(f"expected a folder of audits for --bundle, found {printable(str(folder))}")
    paths = audits_under(folder)
    check_output_folder(
        bundle, [path.parent for path in paths.values() if path.parent != folder] + list(paths.values())
    )
    load_commands()
    with progress(quiet, "rendered", "audits") as update:
        audits = {name: partial(_load, path) for name, path in paths.items()}
        files, contradictions = render_bundle(audits, formats, in_options, update)
    # What an audit's owner alone may read stays so.
    private = any(not path.stat().st_mode & 0o077 for path in paths.values())
    write_folder(bundle, files, private=private)
    if not quiet:
        typer.echo(f"wrote {bundle / 'index.html'} and {count(len(files) - 1, 'file')} of {count(len(paths), 'audit')}")
    for contradiction in contradictions:
        typer.echo(f"riskaudit: {printable(contradiction)}", err=True)
    return EXIT_EXCEEDED if contradictions else 0


def _load(path: Path) -> AuditResult:
    """One of many audits; an error says which."""
    from riskaudit.results import AuditResult

    try:
        return AuditResult.load(path)
    except ResultError as error:
        raise ResultError(f"{printable(str(path.parent))}: {error}") from None


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
