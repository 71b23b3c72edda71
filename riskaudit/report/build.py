"""From an `AuditResult` to the `Document` that HTML, PDF and Markdown render."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel

from riskaudit.document.appendix import with_appendix
from riskaudit.document.blocks import Block, Callout, Document, Section
from riskaudit.formatting import count, given, printable, sentence, short
from riskaudit.report.sections.changes import Changes
from riskaudit.report.sections.evidence import evidence_section
from riskaudit.report.sections.exposed import exposed_section
from riskaudit.report.sections.governance import governance_section
from riskaudit.report.sections.leaks import leaks_section
from riskaudit.report.sections.protect import protect_section
from riskaudit.report.sections.provenance import provenance_section
from riskaudit.report.sections.threat import threat_section
from riskaudit.report.sections.verdict import verdict_section
from riskaudit.results import AuditResult
from riskaudit.results.audit import shows_tokens
from riskaudit.results.facts import Facts
from riskaudit.results.stored import StoredRows, kept_as
from riskaudit.results.studies import STUDIES
from riskaudit.studies.verify.section import read_attack_study, shown_reconstructions

Parts: TypeAlias = Mapping[str, Callable[[Facts], list[Block]]]
ResultT = TypeVar("ResultT", bound=BaseModel)
# How names of the fields end whose text are sentences of the tool's own.
SENTENCES = ("reason", "reasons", "warnings", "note", "notes", "doubt", "not_judged")


def printable_result(result: ResultT, spelling: Callable[[str], str] = str) -> ResultT:
    """The same result with control and direction characters of all its strings made visible.

    Done once here, so that no section and no renderer has to think of them.

    Args:
        result: of an audit, or of an inspection.
        spelling: of parameters' names in sentences, see `riskaudit.report.render`.
    """
    cleaned: ResultT = _printable(result, spelling)
    return cleaned


def _printable(value: Any, spelling: Callable[[str], str], *, is_sentence: bool = False) -> Any:
    match value:
        case str():
            return printable(spelling(value) if is_sentence else value)
        case dict():
            return {
                printable(key): _printable(inner, spelling, is_sentence=is_sentence or key.endswith(SENTENCES))
                for key, inner in value.items()
            }
        case list() | tuple() | StoredRows():
            return kept_as(value, (_printable(inner, spelling, is_sentence=is_sentence) for inner in value))
        case BaseModel() if value.model_extra:
            # Names of a later version's fields are strings of the file too.
            return type(value).model_validate(_printable(value.model_dump(), spelling))
        case BaseModel():
            fields = {name: getattr(value, name) for name in type(value).model_fields}
            return value.model_copy(update=_printable(fields, spelling))
    return value


def build_document(
    result: AuditResult,
    baseline: AuditResult | None = None,
    contradictions: Sequence[str] = (),
    spelling: Callable[[str], str] = str,
) -> Document:
    """Lay out the report; pure, and needs neither a plotting nor a template library."""
    facts = Facts(printable_result(result, spelling))
    changes = None if baseline is None else Changes(facts, Facts(printable_result(baseline, spelling)))
    audited = facts.result
    sections = (
        verdict_section(facts, changes),
        threat_section(facts),
        leaks_section(facts),
        exposed_section(facts),
        protect_section(facts),
        evidence_section(facts),
        governance_section(facts),
        provenance_section(facts, changes),
    )
    parts = {name: _parts_of(name, [section.id for section in sections]) for name in STUDIES}
    return Document(
        title=f"Gradient audit of {short(audited.checkpoint.name, 60)}",
        subtitle=(
            f"{count(facts.num_samples, 'sample')} of {short(audited.data.name, 60)}, "
            f"release {short(audited.release.spec, 60)}"
        ),
        created_at=audited.created_at,
        tool=f"{audited.tool.name} {audited.tool.version}",
        banners=(*_contradicted(contradictions), *_banners(facts)),
        sections=with_appendix(_with_studies(section, parts.values(), facts) for section in sections),
    )


def _parts_of(study: str, ids: Sequence[str]) -> Parts:
    """What a study adds to sections, by their ids.

    Raises:
        ValueError: there is no section of such an id.
    """
    parts: Parts = resolve_name(f"riskaudit.studies.{study}.section:PARTS")
    unknown = sorted(set(parts) - set(ids))
    if unknown:
        raise ValueError(
            f"PARTS of riskaudit/studies/{study}/section.py names {', '.join(unknown)}; sections are {', '.join(ids)}"
        )
    return parts


def _with_studies(section: Section, studies: Iterable[Parts], facts: Facts) -> Section:
    blocks = list(section.blocks)
    for parts in studies:
        if section.id in parts:
            blocks += parts[section.id](facts)
    unreadable = facts.result.studies.unreadable
    if section.id == "evidence" and unreadable:
        lines = tuple(sentence(f"{short(name, 80)}: {short(study.reason, 160)}") for name, study in unreadable.items())
        blocks.append(Callout("Studies in audit.json that can't be read", lines, "unknown"))
    return replace(section, blocks=tuple(blocks))


def _contradicted(contradictions: Sequence[str]) -> tuple[str, ...]:
    if not contradictions:
        return ()
    return (f"The file disagrees with its own numbers, which count here: {printable('; '.join(contradictions))}.",)


def _banners(facts: Facts) -> tuple[str, ...]:
    """What has to stand before everything else, title included."""
    banners = []
    if not facts.result.release.defended:
        ranked = (
            f" Samples are ranked at a reference noise of standard deviation {given(facts.noise_std)}, "
            "which the client does not add."
            if facts.noise_std
            else ""
        )
        banners.append(f"This release is undefended: assume full disclosure.{ranked}")
    shown = sum(row.image_png is not None or shows_tokens(row) for row in facts.result.samples)
    study = read_attack_study(facts)
    reconstructed = shown_reconstructions(study) if study is not None else 0
    parts = [f"{count(shown, 'private input')} (section {3 if facts.result.data.text else 4})"] if shown else []
    parts += [f"{count(reconstructed, 'reconstruction')} of private inputs (section 6)"] if reconstructed else []
    if parts:
        banners.append(
            f"Private inputs are shown: this report contains {' and '.join(parts)}. Handle it like the data itself."
        )
    return tuple(banners)
