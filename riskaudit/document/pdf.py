"""The document as an A4 PDF, typeset by typst with its embedded fonts and without the network.

The document travels as a JSON file beside the template, so no text is ever read as typst markup.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import typst

from riskaudit.document.blocks import (
    Block,
    Bullets,
    Callout,
    DefinitionList,
    Document,
    Figure,
    Gallery,
    Paragraph,
    SignOff,
    Snippet,
    Subheading,
    Table,
)
from riskaudit.document.figures import to_svg
from riskaudit.formatting import one_line

Standard: TypeAlias = Literal["ua-1", "a-2u", "a-3u"]
# What a line that ends early takes, in letters.
_LINE_END = 25
_LONG_WORD = re.compile(r"[^\s\u200b]{18}(?=[^\s\u200b])")
# Letters, accents, Greek, Cyrillic, punctuation and symbols that the embedded fonts are sure to have.
_COVERED = (
    (0x20, 0x52F),
    (0x1D40, 0x1D40),
    (0x1E00, 0x1FFF),
    (0x2010, 0x2027),
    (0x2030, 0x205E),
    (0x2070, 0x209C),
    (0x20AC, 0x20AC),
    (0x2190, 0x2194),
    (0x2200, 0x22FF),
    (0x25A0, 0x25CF),
)


def to_pdf(document: Document, *, standards: Sequence[Standard] = ()) -> bytes:
    """Render the document; ``standards`` asks typst to enforce PDF standards such as "ua-1"."""
    with tempfile.TemporaryDirectory(prefix="riskaudit-") as name:
        folder = Path(name)
        data = _document(document, folder)
        (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
        template = files("riskaudit.document") / "templates" / "audit.typ"
        (folder / "audit.typ").write_bytes(template.read_bytes())
        content = typst.compile(
            str(folder / "audit.typ"),
            root=str(folder),
            format="pdf",
            ignore_system_fonts=True,
            timestamp=_timestamp(document.created_at),
            pdf_standards=list(standards),
        )
    return bytes(content)


def _timestamp(created_at: str) -> int:
    """Seconds since 1970, so that the same audit gives the same bytes; 0 when it isn't a date."""
    try:
        moment = datetime.fromisoformat(created_at)
        return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))
    except (ValueError, OverflowError):
        return 0


def covered(text: str) -> str:
    """``text`` with characters that the embedded fonts may lack written as their code."""
    return "".join(
        letter
        if letter in "\n\u200b" or any(first <= ord(letter) <= last for first, last in _COVERED)
        else f"U+{ord(letter):04X} "
        for letter in text
    )


def _text(text: str) -> str:
    """``text`` with a place to break in words too long for a line."""
    return _LONG_WORD.sub(lambda match: match.group() + "\u200b", covered(one_line(text)))


def _texts(texts: Sequence[str]) -> list[str]:
    return [_text(text) for text in texts]


def _document(document: Document, folder: Path) -> dict[str, Any]:
    return {
        "title": _text(document.title),
        "subtitle": _text(document.subtitle),
        "created_at": _text(document.created_at),
        "tool": _text(document.tool),
        "banners": [_text(banner) for banner in document.banners],
        "sections": [
            {"title": _text(section.title), "blocks": _blocks(section.blocks, folder)} for section in document.sections
        ],
    }


def _blocks(blocks: Sequence[Block], folder: Path) -> list[dict[str, Any]]:
    """Blocks to print; folded tables that follow each other leave one sentence."""
    found: list[dict[str, Any]] = []
    for folded, group in groupby(blocks, key=lambda block: isinstance(block, Table) and block.folded):
        if folded:
            captions = [block.caption for block in group if isinstance(block, Table)]
            tables = "this table" if len(captions) == 1 else "these tables"
            found.append({"kind": "remark", "text": _text(f"The HTML report has {tables} too: {'; '.join(captions)}.")})
        else:
            found += [_block(block, folder) for block in group]
    return found


def _block(block: Block, folder: Path) -> dict[str, Any]:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figure):
        return _figure(block, folder)
    if isinstance(block, Gallery):
        return _gallery(block, folder)
    return {"kind": block.kind, **_prose(block)}


def _prose(
    block: Paragraph | Bullets | Callout | Subheading | Snippet | DefinitionList | SignOff,
) -> dict[str, Any]:
    match block:
        case Paragraph():
            fields: dict[str, Any] = {"lead": _text(block.lead), "text": _text(block.text)}
        case Bullets():
            fields = {"lead": _text(block.lead), "items": _texts(block.items)}
        case Callout():
            fields = {
                "title": _text(block.title),
                "tone": block.tone,
                "body": _texts(block.body),
                "facts": [_texts(pair) for pair in block.facts],
                "steps": _texts(block.steps),
            }
        case Subheading():
            fields = {"text": _text(block.text)}
        case Snippet():
            # Text to copy: no break marks inside.
            fields = {"caption": _text(block.caption), "code": covered(block.code)}
        case DefinitionList():
            fields = {"items": [_texts(pair) for pair in block.items], "left": _left(block) if block.compact else None}
        case SignOff():
            fields = {"fields": _texts(block.fields)}
    return fields


def _left(block: DefinitionList) -> int:
    """How many items make up the left one of two columns of about the same length."""
    ends = [0, *accumulate(len(term) + len(text) + _LINE_END for term, text in block.items)]
    return sum(before + after < ends[-1] for before, after in pairwise(ends))


def _table(table: Table) -> dict[str, Any]:
    rows = table.rows if table.print_rows is None else table.rows[: table.print_rows]
    notes = [table.note] if table.note else []
    if len(rows) < len(table.rows):
        notes.insert(0, f"Only the first {len(rows)} of {len(table.rows):,} rows are printed; the HTML report has all.")
    return {
        "kind": "table",
        "caption": _text(table.caption),
        "layout": table.layout,
        "columns": [
            {
                "title": _text(column.title),
                "unit": _text(column.unit),
                "numeric": column.numeric,
                "ranked": column.ranked,
            }
            for column in table.columns
        ],
        "rows": [
            [
                {
                    "text": _text(cell.text),
                    "mark": _text(cell.mark),
                    "detail": _text(cell.detail),
                    "tone": cell.tone,
                }
                for cell in row
            ]
            for row in rows
        ],
        "legend": [[_text(mark), _text(word)] for mark, word in table.legend],
        "note": _text(" ".join(notes)),
    }


def _figure(block: Figure, folder: Path) -> dict[str, Any]:
    path = folder / f"figure-{block.id}.svg"
    path.write_text(to_svg(block.plot, f"fig-{block.id}", "print"), encoding="utf-8")
    return {
        "kind": "figure",
        "title": _text(block.title),
        "alt": _text(block.alt),
        "caption": _text(block.caption),
        "path": path.name,
        "table": _table(block.table),
    }


def _gallery(block: Gallery, folder: Path) -> dict[str, Any]:
    items = []
    for picture in block.items[: block.print_items]:
        name = None
        if picture.png is not None:
            name = f"picture-{hashlib.sha256(picture.png).hexdigest()}.png"
            (folder / name).write_bytes(picture.png)
        items.append(
            {
                "path": name,
                "label": _text(picture.label),
                "what": _text(picture.what),
                "caption": _text(picture.caption),
            }
        )
    left = len(block.items) - len(items)
    note = f"{left:,} further pictures are in the HTML report." if left else ""
    return {"kind": "gallery", "items": items, "note": note, "group": block.group, "caption": _text(block.caption)}
