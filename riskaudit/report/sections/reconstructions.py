"""Part of section 6: what attacks made of the inputs, shown only where the user asked for it."""

from __future__ import annotations

from riskaudit.report.attack_study import AttackStudy, at_noise
from riskaudit.report.document import Block, Gallery, Paragraph, Picture, Subheading
from riskaudit.report.formatting import number, short
from riskaudit.report.images import safe_png
from riskaudit.results import AttackRow, SampleRow

_PRINTED_SAMPLES = 12


def reconstruction_blocks(study: AttackStudy) -> list[Block]:
    """Per noise level a row for each sample: the original, then its reconstructions; nothing without pictures."""
    blocks: list[Block] = []
    for level in study.noise_levels:
        rows = {(row.sample_id, row.attack): row for row in study.study.attacks if row.noise_std == level}
        shown = {row.sample_id for row in rows.values() if row.image_png is not None}
        attacks = [name for name in study.attack_names if any(rows.get((one, name)) for one in shown)]
        samples = [sample for sample in study.facts.ranked if sample.id in shown]
        originals = any(sample.image_png is not None for sample in samples)
        pictures: list[Picture] = []
        for sample in samples:
            pictures += [_original(study, sample)] if originals else []
            pictures += [_reconstruction(study, sample.id, name, rows.get((sample.id, name))) for name in attacks]
        if pictures:
            columns = len(attacks) + originals
            order = "one sample per row, the private input first" if originals else "one sample per row"
            blocks += [
                Paragraph(f"{at_noise(level).capitalize()}: {order}."),
                Gallery(tuple(pictures), print_items=columns * _PRINTED_SAMPLES, columns=columns),
            ]
    return [Subheading("Reconstructions"), *blocks] if blocks else []


def _original(study: AttackStudy, sample: SampleRow) -> Picture:
    return Picture(
        short(sample.id), safe_png(sample.image_png), f"private input, class {study.facts.class_name(sample)}"
    )


def _reconstruction(study: AttackStudy, sample: str, attack: str, row: AttackRow | None) -> Picture:
    error = row.metrics.get("rmse") if row is not None else None
    name = study.attack_title(attack)
    reached = f"{name}, RMSE {number(error)}" if error is not None else f"{name}, no result"
    png = safe_png(row.image_png) if row is not None and row.image_png is not None else None
    return Picture(short(sample), png, reached, f"Reconstruction by {name}")
