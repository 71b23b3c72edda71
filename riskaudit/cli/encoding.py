"""``riskaudit encoding infer``: a proposal of how the columns of a table become a model's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riskaudit.cli.invocation import input_paths
from riskaudit.cli.models import ConsoleOptions
from riskaudit.cli.options import command
from riskaudit.files import check_output_file, find_samples
from riskaudit.formatting import short

if TYPE_CHECKING:
    from riskaudit.tables import TableEncoding

encoding = typer.Typer(
    help="How the columns of a table become a model's inputs.", no_args_is_help=True, pretty_exceptions_enable=False
)


@encoding.callback()
def _group() -> None:
    """A callback keeps ``infer`` a command of its own even while it is the only one."""


@encoding.command("infer")
@command
def infer(
    console: ConsoleOptions,
    *,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A table, .csv or .parquet.")],
    out: Annotated[Path, typer.Option("--out", help="File for the encoding, encoding.toml say.")],
    label: Annotated[
        str | None,
        typer.Option("--label", help="Column of the labels (default: label, y, target or the last)."),
    ] = None,
) -> int:
    """Propose an encoding, for scan --encoding FILE: to be compared with the model's own preprocessing.

    All rows are read. Exit codes: 0 written, 2 not.
    """
    find_samples(data)
    check_output_file(out, input_paths([data]), _is_encoding)

    from riskaudit.inputs import infer_encoding
    from riskaudit.tables import save_encoding

    inferred = infer_encoding(data, label)
    save_encoding(inferred, out)
    if not console.quiet:
        _print(inferred, out)
    return 0


def _print(inferred: TableEncoding, out: Path) -> None:
    """The columns, without any of their values."""
    from riskaudit.tables import Category

    rows = [("column", "kind", "inputs", "categories", "missing values")]
    for column in inferred.columns:
        categories = str(len(column.categories)) if isinstance(column, Category) else ""
        name, kind = short(column.name) or "(no name)", column.kind or "ignore"
        rows.append((name, kind, str(column.width), categories, column.missing_words))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    typer.echo(f"label: {short(inferred.label or '')}; {inferred.width} inputs")
    typer.echo(
        f"wrote {out}: inferred from the data, so that it holds only if the model's own preprocessing was the same; "
        "compare it before --encoding takes it (it holds means, spreads and words of the table)"
    )


def _is_encoding(path: Path) -> bool:
    from riskaudit.tables.declaration import FIRST_LINE

    with path.open("rb") as stream:
        return stream.read(2**10).startswith(FIRST_LINE.encode())
