"""Long tables behind everything else, so that what is read in order isn't interrupted by pages of rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from riskaudit.document.blocks import Block, Figure, Section, Table, TableLink

# Tables of more rows than this stand in the appendix.
MOST_ROWS = 30


def with_appendix(sections: Iterable[Section]) -> tuple[Section, ...]:
    """The sections, with their long tables in a section of their own at the end, where there are any."""
    tables: list[Table] = []

    def moved(block: Block) -> Block:
        match block:
            case Table() if _is_long(block):
                tables.append(replace(block, brief=False))
                return TableLink(block, brief=block.brief)
            case Figure() if _is_long(block.table):
                tables.append(block.table)
                return replace(block, in_appendix=True)
        return block

    kept = tuple(replace(section, blocks=tuple(map(moved, section.blocks))) for section in sections)
    return (*kept, Section("appendix", "Appendix: long tables", tuple(tables))) if tables else kept


def _is_long(table: Table) -> bool:
    printed = len(table.rows) if table.print_rows is None else min(table.print_rows, len(table.rows))
    return not table.folded and (printed > MOST_ROWS or table.layout == "landscape")
