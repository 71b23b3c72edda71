"""The document's essentials as Markdown, for a pull request: verdict, worst samples, noise needed.

Every character that Markdown or HTML could act on is escaped, and nothing can end a table cell.
"""

from __future__ import annotations

import re

from riskaudit.document.blocks import (
    Block,
    Bullets,
    Callout,
    Cell,
    Document,
    Paragraph,
    Snippet,
    Subheading,
    Table,
    TableLink,
)
from riskaudit.formatting import one_line

_ACTIVE = re.compile(r"([\\`*_\[\]|~$#^!])")
# GitHub links bare addresses: an entity inside "://" and "www." keeps them text.
_ADDRESS = re.compile(r"://|www\.", re.IGNORECASE)
_LINE_START = re.compile(r"^([-+=]|\d+(?=[.)](\s|$)))")


def escape(text: str, *, inside: bool = False) -> str:
    """``text`` on one line with nothing left that Markdown or HTML would act on.

    ``inside`` text doesn't begin a line, so list and heading marks have no meaning in it.
    """
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _ACTIVE.sub(r"\\\1", text)
    text = _ADDRESS.sub(lambda match: match.group().replace(":", "&#58;").replace(".", "&#46;"), text)
    # A zero-width space keeps a name from notifying somebody.
    text = text.replace("@", "@\u200b")
    return text if inside else _LINE_START.sub(_escape_start, text)


def _escape_start(match: re.Match[str]) -> str:
    start = match.group()
    return f"{start}\u200b" if start.isdigit() else f"\\{start}"


def to_markdown(document: Document) -> bytes:
    """Render the blocks marked as brief."""
    lines: list[str] = []
    for banner in document.banners:
        lines += [f"**{escape(banner)}**", ""]
    lines += [f"# {escape(document.title)}", "", f"{escape(document.subtitle)}. {escape(document.created_at)}.", ""]
    elsewhere = []
    for number, section in enumerate(document.sections, 1):
        brief = [block for block in section.blocks if block.brief]
        if not brief:
            elsewhere.append(f"{number} {section.title}")
            continue
        lines += [f"## {number} {escape(section.title, inside=True)}", ""]
        for block in brief:
            lines += [*_block(block), ""]
    if elsewhere:
        lines += [f"Sections of the whole report alone: {escape('; '.join(elsewhere), inside=True)}.", ""]
    lines += [f"Made with {escape(document.tool)}. The whole report: audit.html or audit.pdf."]
    return ("\n".join(lines) + "\n").encode()


def _block(block: Block) -> list[str]:
    if isinstance(block, Paragraph):
        lead = f"**{escape(block.lead)}** " if block.lead else ""
        return [lead + escape(block.text)]
    if isinstance(block, Bullets):
        return [f"**{escape(block.lead)}**", "", *(f"- {escape(item)}" for item in block.items)]
    if isinstance(block, Callout):
        return _callout(block)
    if isinstance(block, Subheading):
        return [f"### {escape(block.text)}"]
    if isinstance(block, Snippet):
        return [f"{escape(block.caption)}:", "", *_fenced(block.code)]
    if isinstance(block, Table | TableLink):
        return _table(block if isinstance(block, Table) else block.table)
    raise TypeError(f"no Markdown for the block {block.kind!r}")


def _fenced(code: str) -> list[str]:
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, *code.splitlines(), fence]


def _callout(block: Callout) -> list[str]:
    lines = [f"### {escape(block.title)}", ""]
    for text in block.body:
        lines += [escape(text), ""]
    if block.shares:
        parts = (f"{share.amount:,} {share.label} ({share.meaning})" for share in block.shares.items)
        lines.append(f"- **{escape(block.shares.title)}:** {escape(', '.join(parts), inside=True)}")
    lines += [f"- **{escape(label)}:** {escape(text)}" for label, text in block.facts]
    if block.steps:
        lines += ["", "**What to do next**", ""]
        lines += [f"{number}. {escape(step)}" for number, step in enumerate(block.steps, 1)]
    return lines


def _table(table: Table) -> list[str]:
    rows = table.rows if table.brief_rows is None else table.rows[: table.brief_rows]
    brief = range(len(table.columns)) if table.brief_columns is None else table.brief_columns
    columns = [table.columns[column] for column in brief]
    rows = tuple(tuple(row[column] for column in brief) for row in rows)
    titles = [f"{column.title} ({column.unit})" if column.unit else column.title for column in columns]
    lines = ["| " + " | ".join(escape(title) for title in titles) + " |"]
    lines.append("|" + "|".join(" ---: " if column.numeric else " --- " for column in columns) + "|")
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    marks = dict.fromkeys((cell.mark, cell.word) for row in rows for cell in row if cell.mark)
    notes = [f"{escape(mark)} {escape(word)}" for mark, word in marks]
    total = len(table.rows) + table.left_out
    if len(rows) < total:
        notes.append(f"the first {len(rows)} of {total:,} rows; {total - len(rows):,} are not listed here")
    if notes:
        lines += ["", f"{'; '.join(notes)}."]
    return lines


def _cell(cell: Cell) -> str:
    mark = f"{escape(cell.mark, inside=True)} " if cell.mark else ""
    detail = f" ({escape(cell.detail, inside=True)})" if cell.detail else ""
    return f"{mark}{escape(cell.text, inside=True)}{detail}"
