"""Which tokens attacks told, by position; words only where the user asked to show the samples."""

from __future__ import annotations

from collections.abc import Sequence

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Cell, Subheading
from riskaudit.formatting import short
from riskaudit.studies.rows import AttackRow
from riskaudit.studies.verify.section.reading import AttackStudy

MOST_ROWS, PRINT_ROWS = 400, 12


def told_blocks(study: AttackStudy) -> list[Block]:
    """A table of the texts that were attacked; nothing where samples are no texts."""
    rows = [row for row in study.record.attacks if row.tokens_right is not None]
    if not rows:
        return []
    columns: list[tables.RowColumn[AttackRow]] = [
        tables.text("Text", lambda row: short(row.sample_id)),
        tables.setting("Noise std", lambda row: row.noise_std),
        tables.text("Attack", lambda row: study.attack_title(row.attack)),
        tables.column("Tokens right", _share, numeric=False, ranked=True),
        tables.text("Positions", lambda row: _ranges(_told(row)) or "none"),
    ]
    if any(row.tokens for row in rows):
        columns.append(tables.text("Reconstructed tokens", _words))
    table = tables.table(
        "tokens-told",
        "Tokens that attacks told",
        rows[:MOST_ROWS],
        columns,
        layout="compact",
        print_rows=PRINT_ROWS,
        left_out=len(rows) - len(rows[:MOST_ROWS]),
        note="The vocabulary's nearest token to what an attack reconstructed, position by position, counted from 0; "
        "tokens that everybody knows are left out.",
    )
    return [Subheading("Tokens told by attacks"), table]


def _told(row: AttackRow) -> list[int]:
    return [place for place, right in enumerate(row.tokens_right or ()) if right]


def _words(row: AttackRow) -> str:
    return short(" ".join(row.tokens or ()), 200)


def _share(row: AttackRow) -> Cell:
    private = [right for right in row.tokens_right or () if right is not None]
    told = sum(map(bool, private))
    return Cell(f"{told} of {len(private)}", told / len(private) if private else None)


def _ranges(places: Sequence[int]) -> str:
    """Numbers with runs drawn together: 1 to 3, 6."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][1] == place - 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)
