"""Part of section 6: what attacks made of the inputs, shown only where the user asked for it."""

from __future__ import annotations

from riskaudit.document.blocks import Block, Gallery, Picture, Subheading
from riskaudit.document.images import safe_png
from riskaudit.formatting import count, number, short
from riskaudit.results import SampleRow
from riskaudit.studies.rows import AttackRow
from riskaudit.studies.verify.section.reading import AttackStudy, at_noise

_SHOWN_SAMPLES = 8
_NO_BREAK = "\u00a0"


def shown_reconstructions(study: AttackStudy) -> int:
    """How many reconstructions the report contains."""
    total = 0
    for level in study.noise_levels:
        rows = _rows(study, level)
        shown = {sample.id for sample in _shown(study, rows)}
        total += sum(row.image_png is not None for (sample, _), row in rows.items() if sample in shown)
    return total


def reconstruction_blocks(study: AttackStudy) -> list[Block]:
    """Per noise level a group for each sample: the original, then its reconstructions; nothing without pictures."""
    blocks: list[Block] = []
    for level in study.noise_levels:
        rows = _rows(study, level)
        samples = _shown(study, rows)
        attacks = [name for name in study.attack_names if any((sample.id, name) in rows for sample in samples)]
        originals = any(sample.image_png is not None for sample in samples)
        pictures: list[Picture] = []
        for sample in samples:
            pictures += (
                [Picture(_label(study, sample), safe_png(sample.image_png), "private input")] if originals else []
            )
            pictures += [_reconstruction(study, sample, name, rows.get((sample.id, name))) for name in attacks]
        if pictures:
            text = "the private input, then what each attack made of it" if originals else "what each attack made of it"
            number_shown = len({sample for sample, _ in rows})
            if len(samples) < number_shown:
                text += f"; the {len(samples)} most exposed of {count(number_shown, 'sample')}"
            group = len(attacks) + originals
            caption = f"{at_noise(level).capitalize()}: {text}. Numbers are the RMSE."
            blocks.append(Gallery(tuple(pictures), print_items=len(pictures), group=group, caption=caption))
    return [Subheading("Reconstructions"), *blocks] if blocks else []


def _rows(study: AttackStudy, level: float) -> dict[tuple[str, str], AttackRow]:
    """Attacks at one noise level on the samples with a picture, by sample id and attack."""
    rows = {(row.sample_id, row.attack): row for row in study.record.attacks if row.noise_std == level}
    pictured = {row.sample_id for row in rows.values() if row.image_png is not None}
    return {key: row for key, row in rows.items() if key[0] in pictured}


def _shown(study: AttackStudy, rows: dict[tuple[str, str], AttackRow]) -> list[SampleRow]:
    """The most exposed samples with a picture."""
    pictured = {sample for sample, _ in rows}
    return [sample for sample in study.facts.ranked if sample.id in pictured][:_SHOWN_SAMPLES]


def _label(study: AttackStudy, sample: SampleRow) -> str:
    return f"{short(sample.id)}, class {study.facts.class_name(sample)}"


def _reconstruction(study: AttackStudy, sample: SampleRow, attack: str, row: AttackRow | None) -> Picture:
    error = row.metrics.get("rmse") if row is not None else None
    name = study.attack_title(attack)
    reached = f"{name} {number(error).replace(' ', _NO_BREAK)}" if error is not None else f"{name}: no result"
    png = safe_png(row.image_png) if row is not None and row.image_png is not None else None
    return Picture(_label(study, sample), png, reached, f"Reconstruction by {name}")
