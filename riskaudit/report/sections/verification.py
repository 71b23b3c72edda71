"""Part of section 6 where attacks ran: does the attack work at all, and did the proxies foresee it?"""

from __future__ import annotations

from statistics import median

from riskaudit.document.blocks import Block, Bullets, Callout, Cell, Column, Paragraph, Table
from riskaudit.document.cells import count_cell, number_cell, tally
from riskaudit.formatting import correlation, count, given, number, percent, sentence, short
from riskaudit.report.attack_study import REFERENCE_NOTE, AttackStudy, at_noise
from riskaudit.report.sections.agreement import agreement_blocks
from riskaudit.report.sections.reconstructions import reconstruction_blocks
from riskaudit.results import STRONGEST, AgreementRow, AttackRow, Control
from riskaudit.results.facts import Facts


def verification_blocks(study: AttackStudy) -> list[Block]:
    """The positive control first; then what the attacks knew, did, and how well the proxies foresaw it."""
    blocks: list[Block] = [_control(study.study.control), _summary(study)]
    if not study.study.complete:
        text = "The study stopped before all attacks had run: what is shown is what there is."
        blocks.append(Callout("The attack study is incomplete", (text,), "unknown"))
    blocks += calibration_blocks(study.facts, attacked=True)
    blocks += [_knowledge(study), _attack_table(study)]
    if study.study.attack_settings:
        blocks.append(Bullets(_settings(study), lead="Settings of the attacks."))
    blocks += agreement_blocks(study)
    blocks += reconstruction_blocks(study)
    notes = [f"{study.metric_title(name)}: {sentence(text)}" for name, text in study.study.metric_notes.items()]
    notes += [sentence(note) for note in study.study.notes]
    if notes:
        blocks.append(Bullets(tuple(notes), lead="Notes of the attack study."))
    return blocks


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


def _summary(study: AttackStudy) -> Paragraph:
    """How the headline prediction fared against the strongest attack, per noise level."""
    if study.study.control.status == "failed":
        text = "Can't be judged: what broken attacks reach says nothing about a prediction. The tables stay for repair."
        return Paragraph(text, lead="Did the prediction hold?", brief=True)
    sentences = []
    for row in _headline_rows(study):
        parts = [at_noise(row.noise_std)]
        if row.spearman is not None:
            known = row.low is not None and row.high is not None
            ends = f" ({correlation(row.low or 0.0)} to {correlation(row.high or 0.0)})" if known else ""
            parts.append(f"Spearman {correlation(row.spearman)}{ends}")
        if row.tightness_median is not None:
            parts.append(f"median of attack over prediction {number(row.tightness_median)}")
        if parts[1:]:
            sentences.append(", ".join(parts))
    if not sentences:
        return Paragraph("No prediction could be held against an attack.", lead="Did the prediction hold?", brief=True)
    text = f"{study.predicted_title()} against the RMSE of the strongest attack: {'; '.join(sentences)}."
    text += f" {REFERENCE_NOTE}" if any(row.noise_std == 0 for row in _headline_rows(study)) else ""
    return Paragraph(text, lead="Did the prediction hold?", brief=True)


def _headline_rows(study: AttackStudy) -> list[AgreementRow]:
    return [
        row
        for row in study.agreement
        if (row.attack, row.metric, row.proxy) == (STRONGEST, "rmse", study.predicted_proxy)
    ]


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


def _knowledge(study: AttackStudy) -> Paragraph:
    knowledge = study.study.knowledge
    known = {True: "known", False: "not known"}
    labels = "known" if knowledge.labels_known else "not known, recovered from the release"
    items = (
        "The weights, the loss, the release and its noise level: known.",
        f"Labels: {labels}.",
        f"Batch-norm statistics: {known[knowledge.batch_norm_statistics_known]}.",
        f"The other samples of a batch: {known[knowledge.rest_of_batch_known]}.",
        f"Range of the inputs: {known[knowledge.input_range_known]}.",
        f"Prior: {short(knowledge.prior, 80)}.",
        "The input itself: never. An attack chooses its reconstruction by its own objective.",
    )
    return Paragraph(" ".join(items), lead="What every attack knew.")


def _attack_table(study: AttackStudy) -> Table | Paragraph:
    rows = []
    seconds = {(row.noise_std, row.attack): row.proxy_seconds for row in study.study.timings}
    for level in study.noise_levels:
        for name in study.attack_names:
            runs = [row for row in study.study.attacks if (row.noise_std, row.attack) == (level, name)]
            if runs:
                rows.append(_attack_cells(study, level, name, runs, seconds.get((level, name))))
    if not rows:
        return Paragraph("The study holds no attack.", lead="Attacks:")
    guess = list(study.prior_only.values())
    columns = (
        Column("Noise std", True),
        Column("Attack"),
        Column("Samples", True),
        Column("Median RMSE", True, "data units"),
        Column("Least RMSE", True, "data units"),
        Column("Status of the runs"),
        Column("Time of the attack", True, "median s per sample"),
        Column("Time of all proxies", True, "median s per sample"),
    )
    return Table(
        "attacks",
        "Attacks that ran, and what they cost beside the proxies",
        columns,
        tuple(rows),
        note=f"Guessing the prior mean has a median RMSE of {number(median(guess))}." if guess else "",
        sortable=True,
        layout="compact",
    )


def _attack_cells(
    study: AttackStudy, level: float, name: str, runs: list[AttackRow], proxy_seconds: float | None
) -> tuple[Cell, ...]:
    errors = [value for row in runs if (value := row.metrics.get("rmse")) is not None]
    reasons = dict.fromkeys(short(row.reason, 100) for row in runs if row.reason)
    return (
        Cell(given(level), level),
        Cell(study.attack_title(name)),
        count_cell(len(runs)),
        number_cell(median(errors) if errors else None, missing="no result"),
        number_cell(min(errors) if errors else None, missing="no result"),
        Cell(tally(row.status for row in runs), detail="; ".join(list(reasons)[:2])),
        number_cell(median(row.seconds for row in runs)),
        number_cell(proxy_seconds, missing="not recorded"),
    )


def _settings(study: AttackStudy) -> tuple[str, ...]:
    return tuple(
        f"{short(name, 32)}: "
        + (", ".join(f"{short(key, 32)} = {_shown(value)}" for key, value in settings.items()) or "none")
        for name, settings in study.study.attack_settings.items()
    )


def _shown(value: float | int | str | bool | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return given(value).replace(" ", "\u00a0") if isinstance(value, float) else short(str(value), 40)
