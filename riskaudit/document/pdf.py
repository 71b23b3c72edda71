"""The document as an A4 PDF, typeset by typst with its embedded fonts and without the network.

The document travels as a JSON file beside the template, so no text is ever read as typst markup.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import typst

from riskaudit.document.blocks import Block, DefinitionList, Document, Figure, Gallery, Snippet, Table, TableLink
from riskaudit.document.figures import to_svg
from riskaudit.formatting import one_line

Standard: TypeAlias = Literal["ua-1", "a-2u", "a-3u"]
# Of lines and rows, as factors, what is tried in turn until a last page is filled so far.
_SPACINGS = ("1", "0.9", "1.1", "0.8", "1.2")
_LEAST_FILLED = 0.5
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
            ignore_system_fonts=True,
            format="pdf",
            timestamp=_timestamp(document.created_at),
            pdf_standards=list(standards),
            sys_inputs=_spacings(folder),
        )
    return bytes(content)


def _spacings(folder: Path) -> dict[str, str]:
    """The spacing of the text and that of the appendix with which no last page is left nearly empty.

    Where none fills a last page half, the one that fills it most.
    """
    parts = ("spacing", "appendix-spacing")
    best: dict[str, tuple[float, str]] = {}
    for spacing in _SPACINGS:
        tails = typst.query(
            str(folder / "audit.typ"),
            "<tail>",
            field="value",
            root=str(folder),
            ignore_system_fonts=True,
            sys_inputs=dict.fromkeys(parts, spacing),
        )
        # Without an appendix there is one tail.
        for part, filled in zip(parts, json.loads(tails), strict=False):
            if part not in best or best[part][0] < min(filled, _LEAST_FILLED):
                best[part] = (filled, spacing)
        if all(filled >= _LEAST_FILLED for filled, _ in best.values()):
            break
    return {part: spacing for part, (_, spacing) in best.items()}


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


def _document(document: Document, folder: Path) -> dict[str, Any]:
    sections = [
        {"id": section.id, "title": _text(section.title), "blocks": _blocks(section.blocks, folder)}
        for section in document.sections
    ]
    return {**_data(replace(document, sections=())), "sections": sections}


def _data(value: Any) -> Any:
    """Blocks and their parts as JSON has them, with all text fit for the page."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, tuple):
        return [_data(part) for part in value]
    if not is_dataclass(value):
        return value
    return {field.name: _data(getattr(value, field.name)) for field in fields(value)}


def _blocks(blocks: Sequence[Block], folder: Path) -> list[dict[str, Any]]:
    """Blocks to print; folded tables that follow each other leave one sentence."""
    printed: list[dict[str, Any]] = []
    for folded, group in groupby(blocks, key=lambda block: isinstance(block, Table) and block.folded):
        if folded:
            captions = [block.caption for block in group if isinstance(block, Table)]
            tables = "this table" if len(captions) == 1 else "these tables"
            text = f"The HTML report has {tables} too: {'; '.join(captions)}."
            printed.append({"kind": "remark", "text": _text(text)})
        else:
            printed += [{"kind": block.kind, **_block(block, folder)} for block in group]
    return printed


def _block(block: Block, folder: Path) -> dict[str, Any]:
    match block:
        case Table():
            return _table(block)
        case Figure():
            return _figure(block, folder)
        case Gallery():
            return _gallery(block, folder)
    content: dict[str, Any]
    match block:
        case TableLink():
            content = {"caption": _text(block.table.caption), "id": block.table.id}
        case Snippet():
            # Text to copy: no break marks inside.
            content = {"caption": _text(block.caption), "code": covered(block.code)}
        case DefinitionList():
            content = {"items": _data(block.items), "left": _left(block) if block.compact else None}
        case _:
            content = _data(block)
    return content


def _left(block: DefinitionList) -> int:
    """How many items make up the left one of two columns of about the same length."""
    ends = [0, *accumulate(len(term) + len(text) + _LINE_END for term, text in block.items)]
    return sum(before + after < ends[-1] for before, after in pairwise(ends))


def _table(table: Table) -> dict[str, Any]:
    rows = table.rows if table.print_rows is None else table.rows[: table.print_rows]
    notes = [table.note] if table.note else []
    if len(rows) < len(table.rows):
        notes.insert(0, f"Only the first {len(rows)} of {len(table.rows):,} rows are printed; the HTML report has all.")
    printed = replace(table, rows=rows, note=" ".join(notes))
    return {**_data(printed), "legend": _data(table.legend)}


def _figure(block: Figure, folder: Path) -> dict[str, Any]:
    path = folder / f"figure-{block.id}.svg"
    path.write_text(to_svg(block.plot, f"fig-{block.id}", "print"), encoding="utf-8")
    texts = {"title": block.title, "alt": block.alt, "caption": block.caption}
    return {name: _text(text) for name, text in texts.items()} | {
        "path": path.name,
        "table": _table(block.table),
        "in_appendix": block.in_appendix,
    }


def _gallery(block: Gallery, folder: Path) -> dict[str, Any]:
    items = block.items[: block.print_items]
    pictures = []
    for picture in items:
        path = None
        if picture.png is not None:
            path = f"picture-{hashlib.sha256(picture.png).hexdigest()}.png"
            (folder / path).write_bytes(picture.png)
        pictures.append({**_data(replace(picture, png=None, alt=picture.words)), "path": path})
    left = len(block.items) - len(items)
    note = f"{left:,} further pictures are in the HTML report." if left else ""
    return {"items": pictures, "note": note, "group": block.group, "caption": _text(block.caption)}
