"""The report as typed blocks: what HTML, PDF and Markdown all render, so that they can't differ.

A block holds plain text and numbers, never markup: every renderer escapes for its own format.
``brief`` marks the blocks that the short Markdown summary keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from riskaudit.document.plots import Plot

Tone: TypeAlias = Literal["plain", "high", "medium", "low", "unknown"]


@dataclass(frozen=True)
class Cell:
    """One table cell.

    ``sort`` is the number behind the text (``None``: sorts last); ``mark`` is the symbol of the
    number's status and ``word`` that status in words; ``detail`` is a second, smaller line such as
    an interval or a reason. ``link`` is a relative address that the HTML puts behind the text.
    """

    text: str
    sort: float | None = None
    mark: str = ""
    word: str = ""
    detail: str = ""
    tone: Tone = "plain"
    link: str = ""


@dataclass(frozen=True)
class Column:
    """One table column. ``numeric`` and ``ranked`` columns sort by `Cell.sort`; the first are right-aligned.

    By the few different texts of a ``filtered`` one the HTML can narrow the rows.
    """

    title: str
    numeric: bool = False
    unit: str = ""
    ranked: bool = False
    filtered: bool = False


@dataclass(frozen=True)
class BaseBlock:
    """What every block has: its ``kind``, by which templates know it, and whether it is ``brief``."""

    brief: bool = field(default=False, kw_only=True)
    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__.lower()


@dataclass(frozen=True)
class Paragraph(BaseBlock):
    """Prose; ``lead`` is set in bold in front of it."""

    text: str
    lead: str = ""


@dataclass(frozen=True)
class Bullets(BaseBlock):
    """A list of sentences, introduced by ``lead``."""

    items: tuple[str, ...]
    lead: str = ""


@dataclass(frozen=True)
class Share:
    """So many of a whole, and what puts them there: "▲ 18 high", "above 0.5"."""

    mark: str
    amount: int
    label: str
    meaning: str
    tone: Tone


@dataclass(frozen=True)
class Shares:
    """How a whole is divided, as a bar with its legend."""

    title: str
    items: tuple[Share, ...]


@dataclass(frozen=True)
class Callout(BaseBlock):
    """A box that must not be overlooked. ``facts`` are label and value pairs.

    ``computed`` are terms of the facts and how their numbers come about; in HTML they are closed until asked for, and
    the PDF leaves them out.
    """

    title: str
    body: tuple[str, ...] = ()
    tone: Tone = "plain"
    facts: tuple[tuple[str, str], ...] = ()
    steps: tuple[str, ...] = ()
    shares: Shares | None = None
    computed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Subheading(BaseBlock):
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class Table(BaseBlock):
    """Rows under columns; the first cell of a row is its header.

    ``left_out`` rows aren't in the table at all, which the note says.
    ``print_rows`` and ``brief_rows`` cut the table in the PDF and in the Markdown summary (a
    sentence then says so); ``brief_columns`` are the columns of the summary. ``layout`` is how the
    PDF fits the table: as it is, in small type with wide prose ("dense"), with columns as wide as they need
    ("compact") or with many columns sharing the page ("fitted"), as two halves side by side ("halved"), or on a
    landscape page (in the appendix only). A ``folded`` table is closed in HTML until it is
    asked for, and left out of the PDF.
    """

    id: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    sortable: bool = False
    layout: Literal["normal", "dense", "compact", "fitted", "halved", "landscape"] = "normal"
    folded: bool = False
    print_rows: int | None = None
    brief_rows: int | None = None
    brief_columns: tuple[int, ...] | None = None
    left_out: int = 0

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """The status marks used in this table with their words, in order of appearance."""
        pairs = ((cell.mark, cell.word) for row in self.rows for cell in row if cell.mark)
        return tuple(dict.fromkeys(pairs))


@dataclass(frozen=True)
class Figure(BaseBlock):
    """A plot, the finding it shows as a sentence, its text alternative, and its numbers as a table.

    A long table stands ``in_appendix`` instead.
    """

    id: str
    title: str
    alt: str
    plot: Plot
    table: Table
    caption: str = ""
    in_appendix: bool = False


@dataclass(frozen=True)
class TableLink(BaseBlock):
    """Says that a table stands in the appendix; the Markdown summary has the table itself, cut, in its place."""

    table: Table


@dataclass(frozen=True)
class Snippet(BaseBlock):
    """Text to copy: a command or a configuration."""

    caption: str
    code: str


@dataclass(frozen=True)
class DefinitionList(BaseBlock):
    """Terms and what they are; a ``compact`` list, to look things up in, is set small and in two columns."""

    items: tuple[tuple[str, str], ...]
    compact: bool = False


@dataclass(frozen=True)
class Picture:
    """One private input, or a reconstruction of it, shown because the user asked to; ``what`` says which.

    One that is neither says with ``alt`` what it is.
    """

    label: str
    png: bytes | None
    caption: str
    what: str = "Private input"
    alt: str = ""

    @property
    def words(self) -> str:
        """Its text alternative."""
        return self.alt or f"{self.what} of sample {self.label}"


@dataclass(frozen=True)
class Gallery(BaseBlock):
    """Private inputs and reconstructions by sample id. Only the first ``print_items`` go into the PDF.

    ``group`` pictures in a row belong together under their common label; None is each on its own. ``caption``
    stands above.
    """

    items: tuple[Picture, ...]
    print_items: int = 40
    group: int | None = None
    caption: str = ""


@dataclass(frozen=True)
class SignOff(BaseBlock):
    """Lines to be filled in by hand."""

    fields: tuple[str, ...]


Block: TypeAlias = (
    Paragraph
    | Bullets
    | Callout
    | Subheading
    | Table
    | TableLink
    | Figure
    | Snippet
    | DefinitionList
    | Gallery
    | SignOff
)


@dataclass(frozen=True)
class Section:
    """A numbered part of the report; ``id`` is its anchor."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report. ``banners`` stand in front of everything, title included.

    ``noun`` is what was made, and ``source`` the file that all of it was rendered from.
    """

    title: str
    subtitle: str
    created_at: str
    tool: str
    sections: tuple[Section, ...]
    banners: tuple[str, ...] = ()
    noun: str = "Audit"
    source: str = "audit.json"
