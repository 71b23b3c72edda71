"""``riskaudit demo``: the embedded example, with nothing to download."""

from __future__ import annotations

import shlex
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from riskaudit.cli.models import ConsoleOptions
from riskaudit.cli.options import command
from riskaudit.errors import OutputError
from riskaudit.files import check_output_file, write_file

CHECKPOINT, SAMPLES, RELEASE = "digits-lenet.safetensors", "digits.npz", "gaussian:0.01"


@command
def demo(
    ctx: typer.Context,
    console: ConsoleOptions,
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder for the demo's checkpoint, samples and report.")] = Path(
        "riskaudit-demo"
    ),
) -> int:
    """Audit a small trained model on handwritten digits: writes checkpoint, samples and a report."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't write to {out}: {error.strerror or error}; choose another --out") from error
    contents = {name: files("riskaudit").joinpath("demo", name).read_bytes() for name in (CHECKPOINT, SAMPLES)}
    for name, content in contents.items():
        check_output_file(out / name, is_own=partial(_holds, content))
    for name, content in contents.items():
        write_file(out / name, content)
    words = ["scan", str(out / CHECKPOINT), "--data", str(out / SAMPLES), "--release", RELEASE]
    words += ["--out", str(out / "report")]
    words += [f"--format={name}" for name in ("html", "pdf", "json", "csv", "md", "sarif")]
    if not console.quiet:
        typer.echo(f"$ riskaudit {shlex.join(words)}")
    # The whole application, one of whose commands this is. Errors of the scan are this command's own.
    application = ctx.find_root().command
    words += ["--quiet"] * console.quiet + ["--debug"] * bool(ctx.params["debug"])
    return int(application.main(args=words, prog_name="riskaudit", standalone_mode=False))


def _holds(content: bytes, path: Path) -> bool:
    return path.stat().st_size == len(content) and path.read_bytes() == content
