"""Figures of section 6 where attacks ran: predictions against attacks, and success probabilities against outcomes.

What attacks made of the inputs is shown only where the user asked for it.
"""

from __future__ import annotations

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Cell, Figure, Gallery, Picture, Subheading, Table
from riskaudit.document.cells import estimate_cell
from riskaudit.document.images import safe_png
from riskaudit.document.plots import Panel, PanelPlot
from riskaudit.formatting import count, given, number, percent, short
from riskaudit.results import SampleRow
from riskaudit.studies.rows import AttackRow
from riskaudit.studies.verify.record import Reliability, ReliabilityBin
from riskaudit.studies.verify.section.reading import AttackedSample, AttackStudy, at_noise, attacked_cell, noise_words

_MOST_PANELS = 6
_PRINT_ROWS = 40
# The corridor's table in section 3 already has the audit's own noise level.
_PRINT_SAMPLES = 12
_SHOWN_SAMPLES = 8
_NO_BREAK = "\u00a0"


def attacked_figure(study: AttackStudy) -> Figure | None:
    """The strongest attack's RMSE against its prediction, one panel per noise level; None without a pair."""
    panels = [panel for level in study.noise_levels if (panel := _panel(study, level)) is not None]
    if not panels:
        return None
    errors = [value for panel in panels for point in (*panel.points, *panel.apart) for value in point]
    title = study.predicted_title()
    left = f" Only the first {_MOST_PANELS} noise levels are drawn." if len(panels) > _MOST_PANELS else ""
    return Figure(
        id="attacked",
        title=_finding(study),
        alt=f"Scatter plots of the strongest attack's RMSE against {title} per noise level, with the identity line.",
        plot=PanelPlot(
            f"predicted: {title} (data units)",
            "attacked: RMSE (data units)",
            tuple(panels[:_MOST_PANELS]),
            "strongest attack",
            "oracle start (not an attack)",
            "attacked = predicted",
            True,
            (min(errors) / 1.4, max(errors) * 1.4),
        ),
        table=_sample_table(study),
        caption=f"Below the line an attack did better than predicted, above it fell short. Logarithmic axes.{left}",
    )


def _panel(study: AttackStudy, level: float) -> Panel | None:
    predicted = [(pair.predicted, pair) for pair in study.samples(level) if pair.predicted and pair.predicted > 0]
    points = tuple((value, pair.attacked) for value, pair in predicted if pair.attacked)
    apart = tuple((value, pair.oracle) for value, pair in predicted if pair.oracle)
    return Panel(noise_words(level), points, apart) if points or apart else None


def _finding(study: AttackStudy) -> str:
    if study.record.control.status == "failed":
        return "The attacks failed their positive control, so points above the line are no evidence of protection"
    parts = [
        f"{number(row.tightness_median)} times the prediction {at_noise(row.noise_std)}"
        for row in study.headline_agreement
        if row.tightness_median is not None
    ]
    if not parts:
        return f"{study.predicted_title()} against the strongest attack on each sample"
    return f"The strongest attack's RMSE is in the median {' and '.join(parts)}"


def _sample_table(study: AttackStudy) -> Table:
    title = study.predicted_title()
    # Without noise there is nothing to lay beside the attack: those rows come last.
    levels = sorted(study.noise_levels, key=lambda level: (level == 0, level))
    pairs = [pair for level in levels for pair in study.samples(level)]
    rows = [pair for pair in pairs if pair.attacked is not None or pair.oracle is not None]
    columns: tables.Columns[AttackedSample] = (
        tables.text("Sample", lambda pair: short(pair.row.id)),
        tables.setting("Noise std", lambda pair: pair.level),
        tables.column(
            f"Predicted: {title}",
            lambda pair: (
                estimate_cell(pair.prediction) if pair.level > 0 else Cell("none without noise", tone="unknown")
            ),
        ),
        tables.column("Strongest attack", lambda pair: attacked_cell(pair.attacked, pair.attack)),
        tables.text("Attack", lambda pair: study.attack_title(pair.attack.attack) if pair.attack else "none"),
        tables.number("Oracle start", lambda pair: pair.oracle, missing="not run"),
    )
    return tables.table(
        "attacked",
        f"{title} and attack RMSE per sample and noise level",
        rows,
        columns,
        sortable=True,
        print_rows=min(_PRINT_SAMPLES, sum(pair.level != 0 for pair in rows)),
        layout="compact",
    )


def reliability_figure(study: AttackStudy) -> Figure | None:
    """Predicted success probabilities against how often the strongest attack succeeded; None without any."""
    records = study.reliability
    if not records:
        return None
    panels = tuple(
        Panel(
            f"{noise_words(record.noise_std)}, RMSE ≤ {given(record.tolerance)}",
            tuple((group.mean_predicted, group.observed) for group in record.bins),
        )
        for record in records[:_MOST_PANELS]
    )
    cut = f" Only the first {_MOST_PANELS} of {len(records)} are drawn." if len(records) > _MOST_PANELS else ""
    title = (
        "Success probabilities can't be judged: the attacks failed their positive control"
        if study.record.control.status == "failed"
        else f"Predicted success probabilities have a Brier score of at most "
        f"{number(max(record.brier for record in records))} (0 = perfect, 0.25 = always saying one half)"
    )
    return Figure(
        id="reliability",
        title=title,
        alt="Reliability curves: the share of attacks that succeeded against the predicted probability of success.",
        plot=PanelPlot(
            "predicted probability of success",
            "attacks that succeeded",
            panels,
            "samples of one bin",
            "",
            "as often as predicted",
            False,
            (-0.03, 1.03),
            joined=True,
        ),
        table=tables.table(
            "reliability",
            "Reliability of the success probability",
            [(record, group) for record in records for group in record.bins],
            _RELIABILITY_COLUMNS,
            layout="compact",
            print_rows=_PRINT_ROWS,
        ),
        caption=(
            "Success: the strongest attack comes within the tolerance of the sample. Above the line attacks succeed "
            f"more often than predicted. Bins with few samples scatter.{cut}"
        ),
    )


_RELIABILITY_COLUMNS: tables.Columns[tuple[Reliability, ReliabilityBin]] = (
    tables.setting("Noise std", lambda row: row[0].noise_std),
    tables.setting("Tolerance", lambda row: row[0].tolerance, "RMSE"),
    tables.number("Brier score", lambda row: row[0].brier),
    tables.column(
        "Predicted between",
        lambda row: Cell(f"{percent(row[1].low)} to {percent(row[1].high)}", row[1].low),
        numeric=False,
        ranked=True,
    ),
    tables.count("Samples", lambda row: row[1].num_samples),
    tables.share("Mean predicted", lambda row: row[1].mean_predicted),
    tables.share("Attacks that succeeded", lambda row: row[1].observed),
)


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
            if originals:
                pictures.append(Picture(_label(study, sample), safe_png(sample.image_png), "private input"))
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
