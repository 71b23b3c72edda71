"""A report read from its document: blocks, tables and figures by id, and all words, without rendering a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, TypeVar

from riskaudit.document.blocks import Block, Callout, Document, Figure, Table
from riskaudit.report.build import build_document
from riskaudit.report.recomputation import recompute
from riskaudit.results import AuditResult

Kind = TypeVar("Kind", bound=Block)


@dataclass(frozen=True)
class Report:
    """What every format renders of one audit."""

    document: Document

    @classmethod
    def of(cls, result: AuditResult, baseline: AuditResult | None = None) -> Report:
        """Drawn from the numbers, as `riskaudit.report.render` does it."""
        result, contradictions = recompute(result)
        return cls(build_document(result, baseline, contradictions))

    def section(self, name: str) -> tuple[Block, ...]:
        """The blocks of the section with this id."""
        (found,) = [section for section in self.document.sections if section.id == name]
        return found.blocks

    def blocks(self, kind: type[Kind], section: str | None = None) -> list[Kind]:
        """The blocks of one kind, of one section or of all."""
        names = [section] if section else [each.id for each in self.document.sections]
        return [block for name in names for block in self.section(name) if isinstance(block, kind)]

    @cached_property
    def figures(self) -> dict[str, Figure]:
        return {figure.id: figure for figure in self.blocks(Figure)}

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Those of figures among them."""
        own = {table.id: table for table in self.blocks(Table)}
        return own | {name: figure.table for name, figure in self.figures.items()}

    @property
    def verdict(self) -> Callout:
        """The box that the report begins with."""
        return self.blocks(Callout, "verdict")[0]

    @property
    def text(self) -> str:
        """All words of the report."""
        return words(self.document)

    def text_of(self, section: str) -> str:
        return words(self.section(section))


def words(value: Any) -> str:
    """All strings in blocks, with plain spaces."""
    return " ".join(_strings(value)).replace("\u00a0", " ")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _strings(each)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _strings(getattr(value, field.name))
