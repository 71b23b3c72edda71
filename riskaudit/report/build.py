"""From an `AuditResult` to the `Document` that HTML, PDF and Markdown render."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from riskaudit.document.blocks import Block, Document, Section
from riskaudit.formatting import count, given, printable, short
from riskaudit.report.attack_study import read_attack_study
from riskaudit.report.sections.corridor import corridor_blocks
from riskaudit.report.sections.evidence import evidence_section
from riskaudit.report.sections.exposed import exposed_section
from riskaudit.report.sections.governance import governance_section
from riskaudit.report.sections.leaks import leaks_section
from riskaudit.report.sections.protect import protect_section
from riskaudit.report.sections.provenance import provenance_section
from riskaudit.report.sections.reconstructions import shown_reconstructions
from riskaudit.report.sections.threat import threat_section
from riskaudit.report.sections.verdict import verdict_section
from riskaudit.results import AuditResult
from riskaudit.results.facts import Facts


def printable_result(result: AuditResult) -> AuditResult:
    """The same audit with control and direction characters of all its strings made visible.

    Done once here, so that no section and no renderer has to think of them.
    """
    return AuditResult.model_validate(_clean(result.model_dump()))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    return value


def build_document(
    result: AuditResult, baseline: AuditResult | None = None, contradictions: Sequence[str] = ()
) -> Document:
    """Lay out the report; pure, and needs neither a plotting nor a template library."""
    facts = Facts(printable_result(result))
    earlier = printable_result(baseline) if baseline is not None else None
    audited = facts.result
    return Document(
        title=f"Gradient audit of {short(audited.checkpoint.name, 60)}",
        subtitle=(
            f"{count(facts.num_samples, 'sample')} of {short(audited.data.name, 60)}, "
            f"release {short(audited.release.spec, 60)}"
        ),
        created_at=audited.created_at,
        tool=f"{audited.tool.name} {audited.tool.version}",
        banners=(*_contradicted(contradictions), *_banners(facts)),
        sections=(
            verdict_section(facts),
            threat_section(facts),
            _joined(leaks_section(facts), corridor_blocks(facts)),
            exposed_section(facts),
            protect_section(facts),
            evidence_section(facts),
            governance_section(facts),
            provenance_section(facts, earlier),
        ),
    )


def _joined(section: Section, blocks: Sequence[Block]) -> Section:
    return replace(section, blocks=(*section.blocks, *blocks))


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
    shown = sum(row.image_png is not None for row in facts.result.samples)
    study = read_attack_study(facts)
    reconstructed = shown_reconstructions(study) if study is not None else 0
    parts = [f"{count(shown, 'private input')} (section 4)"] if shown else []
    parts += [f"{count(reconstructed, 'reconstruction')} of private inputs (section 6)"] if reconstructed else []
    if parts:
        banners.append(
            f"Private inputs are shown: this report contains {' and '.join(parts)}. Handle it like the data itself."
        )
    return tuple(banners)
