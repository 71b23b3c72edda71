"""Section 8: what was audited, with what, and how to get the same numbers again.

Beside an earlier audit: what changed in configuration, means, and samples matched by id.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from riskaudit.document import tables
from riskaudit.document.blocks import (
    Block,
    Callout,
    Cell,
    DefinitionList,
    Paragraph,
    Section,
    Snippet,
    Subheading,
    Table,
)
from riskaudit.document.cells import estimate_cell
from riskaudit.formatting import count, given, number, sentence, short, signed
from riskaudit.report.sections.schemes import attacker_words
from riskaudit.results import AuditResult, Estimate, SampleRow
from riskaudit.results.facts import Facts
from riskaudit.results.ranks import known_ends, overlaps
from riskaudit.results.tables import EncodingInfo
from riskaudit.results.words import COMPARED

_TERMS = (
    ("Release", "What leaves the client: the gradient or the change of the weights, and all that is done to it."),
    ("Prior", "What the attacker is taken to know of an input before seeing the release."),
    ("Isotropic prior", "Every coordinate on its own, with one mean and one standard deviation for all."),
    ("Data prior", "A Gaussian with the mean and the correlations of a set of inputs (shrunk after Ledoit and Wolf)."),
    ("Class prior", "One such Gaussian per class, for an attacker who knows the label; rare classes share one."),
    (
        "Probability of success",
        "How probably the error of the best attacker with the prior lies within a tolerance, to first order.",
    ),
    ("Predictive interval", "Where the error of a single attack lies nine times out of ten; its mean is one number."),
    ("Reference noise", "Noise that only exists in the audit, to rank samples of a release that has none."),
    ("Effective dimension", "Revealed fraction times the number of input coordinates."),
    ("RMSE", "Root mean squared error per input coordinate, in data units."),
    ("Gini", "A measure of unevenness between 0 (all alike) and 1 (one carries all)."),
    ("Bracketed", "The true value lies in the interval that is shown."),
    ("Singular", "Some direction of the input is not in the release at all, so an error without a prior is infinite."),
    ("Not assessed", "No verdict could be reached. Never a sign of safety."),
)
_TERMS_OF_UPLOADS = (
    ("Upload", "What leaves at once: one vector that is made of several samples, of one client or of several."),
    ("Informed attacker", "Knows all other samples of an upload; what it learns is the most that anybody does."),
    ("Outsider", "Knows no sample of an upload. Numbers that don't name their attacker are an outsider's."),
    ("Classmates", "Other samples of the same class in the same upload."),
    ("Crowd", "The other samples of an upload, and what not knowing them takes from an attacker."),
)
_PROXIES = (*COMPARED, "map_rmse", "i2f", "lavp_l2_max", "gradient_norm")
_CONFIGURATION = ("tool", "checkpoint", "data", "release", "threat_model", "prior", "settings")


def provenance_section(facts: Facts, baseline: AuditResult | None) -> Section:
    """Hashes, settings, cost, command, changes, methods and words."""
    result = facts.result
    blocks: list[Block] = [_pairs("sources", "What was audited", _sources(result))]
    blocks.append(_pairs("settings", "Settings that decide the numbers", _settings(result)))
    seconds, memory = result.cost.seconds, result.cost.peak_memory_bytes
    pairs = [
        ("Time", "not recorded" if seconds is None else f"{number(seconds)} s"),
        ("Matrix products", f"{result.cost.matvecs:,}"),
        ("Peak memory", f"{number(memory / 2**20)} MiB" if memory is not None else "not measured"),
    ]
    versions = ", ".join(f"{short(name)} {short(version)}" for name, version in sorted(result.versions.items()))
    blocks.append(_pairs("cost", "Cost and versions", [*pairs, ("Versions", versions or "not recorded")]))
    if result.command:
        title = "The command that reproduces this audit"
        if "--add-to" in result.command:
            title = "The last command; earlier ones made the studies that it kept"
        blocks.append(Snippet(title, result.command))
    else:
        blocks.append(Paragraph("The audit was made from Python, so there is no command line.", lead="Command."))
    if baseline is not None:
        blocks += baseline_blocks(result, baseline)
    blocks += [Subheading("Methods and limits"), DefinitionList(_methods(facts), compact=True)]
    proxies: list[tuple[str, str]] = []
    for proxy in facts.proxy_ids:
        info = facts.info(proxy)
        formula = f"Formula: {info.formula}." if info and info.formula else ""
        words = [] if info is None else [sentence(info.summary), formula, f"Source: {info.source}."]
        proxies.append((facts.title(proxy), " ".join(word for word in words if word) or "No description."))
    blocks += [
        Subheading("Proxies in plain words"),
        DefinitionList(tuple(proxies), compact=True),
        Subheading("Terms"),
        DefinitionList((*_TERMS, *(_TERMS_OF_UPLOADS if facts.is_joint else ())), compact=True),
    ]
    return Section("provenance", "Provenance, methods and words", tuple(blocks))


def _pairs(table_id: str, caption: str, rows: list[tuple[str, str]]) -> Table:
    return tables.pairs(table_id, caption, ("Item", "Value"), rows, layout="dense")


def _sources(result: AuditResult) -> list[tuple[str, str]]:
    checkpoint, data = result.checkpoint, result.data
    shape = " × ".join(str(side) for side in data.input_shape)
    span = " to ".join(given(end) for end in data.input_range)
    return [
        ("Checkpoint", short(checkpoint.name, 80)),
        ("Checkpoint SHA-256", checkpoint.sha256 or "not available: not read from one file"),
        ("Architecture", f"{short(checkpoint.architecture, 80)}, {checkpoint.num_parameters:,} parameters"),
        ("Data", f"{short(data.name, 80)}, {data.num_samples:,} audited, shape {shape}, values {span}"),
        ("Data SHA-256", data.sha256 or "not available: not read from one file"),
        *_encoding_rows(data.encoding),
        ("Release", short(result.release.spec, 120)),
        ("Audit made", result.created_at),
        ("Audit made with", f"{result.tool.name} {result.tool.version}"),
    ]


def _settings(result: AuditResult) -> list[tuple[str, str]]:
    settings = result.settings
    optional = {
        "Batch size": settings.batch_size,
        "Tolerance of the solvers": settings.tolerance,
        "Products of a solver, at most": settings.max_matvecs,
        "Precision asked for (relative width)": settings.precision,
        "Budget (seconds)": settings.budget_seconds,
        "Confidence": settings.confidence,
        "Target RMSE": settings.target_rmse,
    }
    pairs = [
        ("Seed", str(settings.seed)),
        ("Device and precision", f"{settings.device}, {settings.dtype}"),
        ("Loss", settings.loss),
        ("Jacobian", _with_reason(settings.jacobian or "not recorded", settings.jacobian_reason)),
        ("Solver", _with_reason(settings.solver, settings.solver_reason)),
        ("Inverse", _with_reason(settings.inverse, settings.inverse_reason)),
    ]
    pairs += [(label, given(value)) for label, value in optional.items() if value is not None]
    levels = settings.thresholds
    pairs.append(("Levels", f"high above {given(levels.high)}, medium from {given(levels.medium)}"))
    if settings.normalization_mean or settings.normalization_std:
        mean = ", ".join(given(value) for value in settings.normalization_mean or ()) or "none"
        std = ", ".join(given(value) for value in settings.normalization_std or ()) or "none"
        pairs.append(("Normalisation inside the model", f"mean {mean}; std {std}"))
    prior = result.prior
    pairs += _upload_settings(result)
    pairs.append(("Prior", f"{prior.kind}, mean {number(prior.mean)}, std {number(prior.std)}"))
    return pairs


def _upload_settings(result: AuditResult) -> list[tuple[str, str]]:
    release, facts = result.release, Facts(result)
    pairs = [("Batch norm", f"{release.batch_norm} statistics")] if release.batch_norm else []
    if facts.is_joint:
        pairs = [
            ("Samples of an upload", str(release.upload_size or "not recorded")),
            ("Verdicts and limits go by", attacker_words(facts)),
            *pairs,
        ]
    return pairs


def _with_reason(name: str, reason: str | None) -> str:
    return f"{short(name)}: {reason}" if reason else short(name)


def _methods(facts: Facts) -> tuple[tuple[str, str], ...]:
    return (
        (
            "Method",
            f"The release is linearised at each {'upload' if facts.is_joint else 'sample'} (its Jacobian J). With "
            "noise of known law and a Gaussian prior, the eigenvalues of JᵀJ say how precisely each direction of the "
            "input can be recovered."
            + (
                " A sample's numbers are read off its block of the posterior covariance of the whole upload, those of "
                "an informed attacker off its block of JᵀJ."
                if facts.is_joint
                else ""
            ),
        ),
        *(
            (
                (
                    "Intervals",
                    "Not all eigenvalues were computed. Lanczos iterations and random probes bracket what depends on "
                    "them; every interval of this audit holds at once with the confidence stated under Provenance, "
                    "over the random starts and probes. The interval of a number says nothing of the linearisation.",
                ),
            )
            if facts.bracketed
            else ()
        ),
        (
            "First order",
            "Far from the sample the release is not linear. Very small noise and very large noise are where the "
            "prediction is least tested.",
        ),
        (
            "A mean, not a bound",
            "Posterior RMSE is an average over noise and prior. A single attack can do better or worse.",
        ),
        (
            "Variability",
            "The same seed gives the same numbers on the same machine. Another draw of the noise moves I2F and MAP "
            "I2F, but not revealed fraction and posterior RMSE.",
        ),
        (
            "Data units",
            "Errors are root mean squares per input coordinate in the units of the data: "
            f"values from {' to '.join(given(end) for end in facts.result.data.input_range)}.",
        ),
    )


def baseline_blocks(result: AuditResult, baseline: AuditResult) -> list[Block]:
    """The changes, as a sentence and three tables."""
    now, before = Facts(result), Facts(baseline)
    old = {row.id: row for row in baseline.samples}
    matched = [(row, old[row.id]) for row in now.ranked if row.id in old]
    blocks: list[Block] = [Subheading("Changes since the baseline", brief=True), _summary(now, before, matched)]
    if result.data.sha256 != baseline.data.sha256 or result.data.sha256 is None:
        text = "The data differ or are not hashed, so equal ids may not mean equal samples."
        blocks.append(Callout("Samples are matched by id", (text,), "medium"))
    blocks += [_configuration_table(result, baseline), _mean_table(now, before)]
    if matched:
        blocks.append(_sample_table(matched, _compared(now, before)))
    return blocks


def _summary(now: Facts, before: Facts, matched: list[tuple[SampleRow, SampleRow]]) -> Paragraph:
    compared = _compared(now, before)
    deltas = [delta for pair in matched if (delta := _delta(pair, compared)) is not None]
    new, gone = now.num_samples - len(matched), before.num_samples - len(matched)
    text = (
        f"Baseline of {before.result.created_at}: {count(len(matched), 'sample')} matched by id, {new:,} new, "
        f"{gone:,} no longer there."
    )
    if deltas:
        worse = sum(delta > 0 for delta in deltas)
        text += (
            f" The revealed fraction rose for {worse:,} of them and changed by {signed(statistics.fmean(deltas))} "
            "on average."
        )
    doubtful = sum(_overlapping(pair, compared) for pair in matched)
    if doubtful:
        text += f" For {doubtful:,} of them the intervals overlap, so before and now can't be told apart."
    return Paragraph(text, brief=True)


def _compared(now: Facts, before: Facts) -> tuple[str, str]:
    """Ids of the revealed fractions that are held against each other: those of one attacker, where both have it."""
    return now.headline, now.headline if now.is_joint and before.is_joint else before.headline


def _estimates(pair: tuple[SampleRow, SampleRow], compared: tuple[str, str]) -> tuple[Estimate | None, Estimate | None]:
    return pair[0].proxies.get(compared[0]), pair[1].proxies.get(compared[1])


def _delta(pair: tuple[SampleRow, SampleRow], compared: tuple[str, str]) -> float | None:
    now, before = _estimates(pair, compared)
    if now is None or before is None or now.value is None or before.value is None:
        return None
    return now.value - before.value


def _overlapping(pair: tuple[SampleRow, SampleRow], compared: tuple[str, str]) -> bool:
    """Whether intervals leave open in which of two audits a sample revealed more."""
    now, before = map(known_ends, _estimates(pair, compared))
    return (
        now is not None and before is not None and (now[0] < now[1] or before[0] < before[1]) and overlaps(now, before)
    )


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return short(", ".join(_shown(part) for part in value) or "empty", 80)
    return number(value) if isinstance(value, float) else short(str(value), 80)


def _configuration_table(result: AuditResult, baseline: AuditResult) -> Table | Paragraph:
    now = dict(_flatten(result.model_dump(include=set(_CONFIGURATION))))
    before = dict(_flatten(baseline.model_dump(include=set(_CONFIGURATION))))
    names = [name for name in dict.fromkeys((*now, *before)) if now.get(name) != before.get(name)]
    if not names:
        return Paragraph("Configuration, checkpoint and data are the same as in the baseline.")
    columns: tables.Columns[str] = (
        tables.text("Setting", lambda name: name),
        tables.text("Baseline", lambda name: _shown(before.get(name))),
        tables.text("Now", lambda name: _shown(now.get(name))),
    )
    return tables.table("changed-configuration", "What is configured differently", names, columns)


def _mean_table(now: Facts, before: Facts) -> Table:
    def mean(facts: Facts, proxy: str) -> float | None:
        values = facts.values(proxy)
        return statistics.fmean(values) if values else None

    def change(proxy: str) -> Cell:
        new, old = mean(now, proxy), mean(before, proxy)
        return _change_cell(None if new is None or old is None else new - old, missing="no value")

    columns: tables.Columns[str] = (
        tables.text("Proxy", now.title),
        tables.number("Baseline mean", lambda proxy: mean(before, proxy), missing="no value"),
        tables.number("Mean now", lambda proxy: mean(now, proxy), missing="no value"),
        tables.column("Change", change),
    )
    proxies = [proxy for proxy in _PROXIES if now.values(proxy) or before.values(proxy)]
    differ = "Where several samples leave together these are an outsider's numbers unless they say otherwise."
    note = differ if now.is_joint != before.is_joint else ""
    return tables.table("changed-means", "Means over the samples with a value", proxies, columns, note=note, brief=True)


def _change_cell(delta: float | None, doubt: str = "", missing: str = "not applicable") -> Cell:
    return Cell(doubt or missing, tone="unknown") if delta is None else Cell(signed(delta), delta, detail=doubt)


def _sample_table(matched: list[tuple[SampleRow, SampleRow]], compared: tuple[str, str]) -> Table:
    def change(pair: tuple[SampleRow, SampleRow]) -> Cell:
        return _change_cell(_delta(pair, compared), "can't be told apart" if _overlapping(pair, compared) else "")

    columns: tables.Columns[tuple[SampleRow, SampleRow]] = (
        tables.text("Sample", lambda pair: short(pair[0].id)),
        tables.column("Revealed fraction, baseline", lambda pair: estimate_cell(_estimates(pair, compared)[1])),
        tables.column("Revealed fraction, now", lambda pair: estimate_cell(_estimates(pair, compared)[0])),
        tables.column("Change", change),
        tables.text("Verdict", lambda pair: f"{pair[1].verdict} → {pair[0].verdict}".replace("_", " ")),
    )
    return tables.table("changed-samples", "Samples matched by id", matched, columns, sortable=True, print_rows=40)


def _encoding_rows(encoding: EncodingInfo | None) -> list[tuple[str, str]]:
    """How the columns of a table became inputs."""
    if encoding is None:
        return []
    columns = [
        f"{short(column.name, 30)} ({column.kind}, {count(column.inputs, 'input')}"
        + (f", missing values: {column.missing})" if column.missing not in ("", "refused") else ")")
        for column in encoding.columns
    ]
    return [
        ("Encoding", f"{short(encoding.name, 60)}, SHA-256 {encoding.sha256 or 'not available'}"),
        ("Columns", "; ".join(columns)),
        *([("Columns not seen", ", ".join(short(name, 30) for name in encoding.ignored))] * bool(encoding.ignored)),
    ]
