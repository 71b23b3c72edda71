"""Parts of the report where attacks ran: does the attack work at all, and did the proxies foresee it?"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from statistics import median

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Bullets, Callout, Cell, Paragraph, Table
from riskaudit.document.cells import tally
from riskaudit.formatting import correlation, count, given, number, percent, sentence, short
from riskaudit.results.facts import Facts
from riskaudit.studies.rows import TIME_REASONS, AttackRow, Control
from riskaudit.studies.verify.section.agreement import agreement_blocks
from riskaudit.studies.verify.section.corridor import attacked_finding, corridor_blocks
from riskaudit.studies.verify.section.figures import reconstruction_blocks, shown_reconstructions
from riskaudit.studies.verify.section.reading import REFERENCE_NOTE, AttackStudy, at_noise, read_attack_study
from riskaudit.studies.verify.section.texts import told_blocks


def verification_blocks(study: AttackStudy) -> list[Block]:
    """The positive control first; then what the attacks knew, did, and how well the proxies foresaw it."""
    blocks: list[Block] = [_control(study.record.control), _summary(study)]
    if not study.record.complete:
        text = "The study stopped before all attacks had run: what is shown is what there is."
        missing = [row for row in study.record.attacks if row.status in TIME_REASONS]
        if missing:
            text = (
                f"The budget of time was used up: of {count(len(study.record.attacks), 'attack')} on single samples "
                f"{len(missing):,} didn't run to their end. Of these samples nothing is known, least of all that they "
                "are safe."
            )
        blocks.append(Callout("The attack study is incomplete", (text,), "unknown"))
    blocks += calibration_blocks(study.facts, attacked=True)
    knowledge = study.record.knowledge
    words = {True: "known", False: "not known"}
    labels = "known" if knowledge.labels_known else "not known, recovered from the release"
    items = (
        "The weights, the loss, the release and its noise level: known.",
        f"Labels: {labels}.",
        f"Batch-norm statistics: {words[knowledge.batch_norm_statistics_known]}.",
        f"The other samples of a batch: {words[knowledge.rest_of_batch_known]}.",
        f"Range of the inputs: {words[knowledge.input_range_known]}.",
        f"Prior: {short(knowledge.prior, 80)}.",
        "The input itself: never. An attack chooses its reconstruction by its own objective.",
    )
    blocks += [Paragraph(" ".join(items), lead="What every attack knew."), _attack_table(study)]
    if study.record.attack_settings:
        blocks.append(
            Bullets(
                tuple(
                    f"{short(name, 32)}: "
                    + (", ".join(f"{short(key, 32)} = {_shown(value)}" for key, value in settings.items()) or "none")
                    for name, settings in study.record.attack_settings.items()
                ),
                lead="Settings of the attacks.",
            )
        )
    blocks += _against_originals(study)
    blocks += agreement_blocks(study)
    blocks += reconstruction_blocks(study)
    blocks += told_blocks(study)
    notes = [f"{study.metric_title(name)}: {sentence(text)}" for name, text in study.record.metric_notes.items()]
    notes += [sentence(note) for note in study.record.notes]
    if notes:
        blocks.append(Bullets(tuple(notes), lead="Notes of the attack study."))
    return blocks


def _against_originals(study: AttackStudy) -> list[Block]:
    """How near the strongest attacks came to the images before the client transformed them."""
    rows = [row for (level, _), (_, row) in study.best.items() if level == study.audited_level]
    found = [row.original_metrics["rmse"] for row in rows if row.original_metrics]
    errors = [error for error in found if error is not None]
    if not errors:
        return []
    text = (
        f"Errors are against the transformed images. Against the images themselves the strongest attacks have a median "
        f"RMSE of {number(median(errors))} at the audited noise, and a least one of {number(min(errors))}."
    )
    return [Paragraph(text, lead="Against the original images.")]


def _control(control: Control) -> Callout:
    reached = f"a median RMSE of {number(control.rmse)}" if control.rmse is not None else "no result"
    limit = f"; it had to reach {given(control.limit)}" if control.limit is not None else ""
    on = f" on {count(control.num_samples, 'sample')}" if control.num_samples else ""
    name = f"The attack {short(control.attack)}" if control.attack else "The strongest attack"
    body = (
        f"{name} reached {reached}{on} of an undefended release of a small network, which must be reconstructible"
        f"{limit}."
    )
    because = f" {sentence(control.reason)}" if control.reason else ""
    if control.status == "passed":
        title = f"Positive control passed: {short(control.attack) if control.attack else 'the strongest attack'} works"
        return Callout(title, (body + because,), "low", brief=True)
    if control.status == "failed":
        meaning = (
            "The attacks are broken. That they did not reconstruct the audited samples does not mean that the data is "
            "safe: read the predictions only, and repair the attacks before comparing."
        )
        return Callout("Positive control failed: the attacks are broken", (body + because, meaning), "high", brief=True)
    meaning = "Whether the attacks work at all is not known, so a failed reconstruction proves nothing."
    return Callout(
        "Positive control skipped", (because.strip(), meaning) if because else (meaning,), "unknown", brief=True
    )


def attack_control_blocks(control: Control | None) -> list[Block]:
    """What a study's attacks are worth, where that isn't much."""
    if control is None or control.status == "passed":
        return []
    text = (
        "The attacks of this study did not reconstruct an undefended network that must be reconstructible."
        if control.status == "failed"
        else f"The attacks of this study had no positive control. {sentence(control.reason or '')}"
    )
    return [Callout("Attack errors below are no evidence of protection", (text.strip(),), "unknown")]


def _summary(study: AttackStudy) -> Paragraph:
    """How the headline prediction fared against the strongest attack, per noise level."""
    if study.record.control.status == "failed":
        text = "Can't be judged: what broken attacks reach says nothing about a prediction. The tables stay for repair."
        return Paragraph(text, lead="Did the prediction hold?", brief=True)
    sentences = []
    for row in study.headline_agreement:
        parts = [at_noise(row.noise_std)]
        if row.spearman is not None:
            bounded = row.low is not None and row.high is not None
            ends = f" ({correlation(row.low or 0.0)} to {correlation(row.high or 0.0)})" if bounded else ""
            mark = study.sign_mark(row.proxy, row.metric, row.spearman, row.low, row.high)
            parts.append(f"Spearman {correlation(row.spearman)}{ends}{mark}")
        if row.tightness_median is not None:
            parts.append(f"median of attack over prediction {number(row.tightness_median)}")
        if parts[1:]:
            sentences.append(", ".join(parts))
    if not sentences:
        return Paragraph("No prediction could be held against an attack.", lead="Did the prediction hold?", brief=True)
    text = f"{study.predicted_title()} against the RMSE of the strongest attack: {'; '.join(sentences)}."
    text += f" {REFERENCE_NOTE}" if any(row.noise_std == 0 for row in study.headline_agreement) else ""
    return Paragraph(text, lead="Did the prediction hold?", brief=True)


def calibration_blocks(facts: Facts, *, attacked: bool) -> list[Block]:
    """What attacks on other samples make of the predictions, or that there were none."""
    calibration = facts.result.calibration
    if calibration is None:
        ran = (
            "The intervals are those of theory: no calibration says how often attacks stay inside them."
            if attacked
            else "No attack tried the audit's own numbers. They are what theory predicts for the stated attacker, to "
            "first order; riskaudit verify runs the attacks."
        )
        hint = " riskaudit calibrate attacks a calibration set once." if attacked else ""
        return [Callout("Not calibrated against attacks", (ran + hint,), "unknown")]
    factors = _factor_words(calibration.low_factor, calibration.high_factor)
    digest = f", sha256 {calibration.sha256[:12]}…" if calibration.sha256 else ""
    attacks = f" Attacks: {', '.join(short(name, 32) for name in calibration.attacks)}." if calibration.attacks else ""
    body = (
        f"The strongest attack's RMSE is {factors} with a probability of {percent(calibration.coverage)}, if the "
        f"samples are exchangeable with the {calibration.num_samples:,} of the calibration: same source of data, "
        "model, release and attacks. It is a statement about the average over samples, not about each one.",
        f"From {short(calibration.name, 60)}{digest}, {at_noise(calibration.noise_std)}, prior "
        f"{short(calibration.prior, 40)}.{attacks}",
    )
    return [Callout("Calibrated against attacks", body, "plain")]


def _factor_words(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"between {number(low)} and {number(high)} times MAP RMSE"
    if low is not None:
        return f"at least {number(low)} times MAP RMSE (too few samples for an upper end)"
    if high is not None:
        return f"at most {number(high)} times MAP RMSE (too few samples for a lower end)"
    return "not bounded, because the calibration has too few samples,"


@dataclass(frozen=True)
class _Runs:
    """One attack at one noise level."""

    level: float
    attack: str
    rows: list[AttackRow]
    proxy_seconds: float | None

    @property
    def errors(self) -> list[float]:
        return [error for row in self.rows if (error := row.metrics.get("rmse")) is not None]

    def median_seconds(self) -> float | None:
        seconds = [row.seconds for row in self.rows if row.status not in TIME_REASONS]
        return median(seconds) if seconds else None

    def status_cell(self) -> Cell:
        reasons = dict.fromkeys(short(row.reason, 100) for row in self.rows if row.reason)
        return Cell(tally(row.status for row in self.rows), detail="; ".join(list(reasons)[:2]))


def _attack_table(study: AttackStudy) -> Table | Paragraph:
    seconds = {(row.noise_std, row.attack): row.proxy_seconds for row in study.record.timings}
    by_attack: dict[tuple[float, str], list[AttackRow]] = defaultdict(list)
    for row in study.record.attacks:
        by_attack[row.noise_std, row.attack].append(row)
    runs = [
        _Runs(*key, by_attack[key], seconds.get(key))
        for key in product(study.noise_levels, study.attack_names)
        if key in by_attack
    ]
    if not runs:
        return Paragraph("The study holds no attack.", lead="Attacks:")
    columns: tables.Columns[_Runs] = (
        tables.setting("Noise std", lambda run: run.level),
        tables.text("Attack", lambda run: study.attack_title(run.attack)),
        tables.count("Samples", lambda run: len(run.rows)),
        tables.number(
            "Median RMSE", lambda run: median(run.errors) if run.errors else None, "data units", missing="no result"
        ),
        tables.number("Least RMSE", lambda run: min(run.errors, default=None), "data units", missing="no result"),
        tables.column("Status of the runs", _Runs.status_cell, numeric=False),
        tables.number("Time of the attack", _Runs.median_seconds, "median s per sample", missing="not run"),
        tables.number(
            "Time of all proxies", lambda run: run.proxy_seconds, "median s per sample", missing="not recorded"
        ),
    )
    guesses = list(study.prior_only.values())
    return tables.table(
        "attacks",
        "Attacks that ran, and what they cost beside the proxies",
        runs,
        columns,
        note=f"Guessing the prior mean has a median RMSE of {number(median(guesses))}." if guesses else "",
        sortable=True,
        layout="compact",
    )


def _shown(value: float | int | str | bool | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return given(value).replace(" ", "\u00a0") if isinstance(value, float) else short(str(value), 40)


# Which sections of the report the study adds to.
PARTS = {"how-much-leaks": corridor_blocks}

__all__ = [
    "PARTS",
    "AttackStudy",
    "attack_control_blocks",
    "attacked_finding",
    "calibration_blocks",
    "read_attack_study",
    "shown_reconstructions",
    "verification_blocks",
]
