"""Section 8: what was audited, with what, and how to get the same numbers again.

Beside an earlier audit also what changed since.
"""

from __future__ import annotations

from riskaudit.document import tables
from riskaudit.document.blocks import (
    Block,
    DefinitionList,
    Paragraph,
    Section,
    Snippet,
    Subheading,
    Table,
)
from riskaudit.formatting import count, given, number, sentence, short
from riskaudit.report.sections.changes import Changes, change_blocks
from riskaudit.report.sections.schemes import attacker_words
from riskaudit.results import AuditResult
from riskaudit.results.facts import Facts
from riskaudit.results.tables import EncodingInfo

_TERMS = (
    ("Upload", "What leaves the client at once."),
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
    ("Coordinate", "One number of an input, such as one colour of a pixel."),
    ("Standard deviation per entry", "How large the noise on each number that leaves is, typically."),
    (
        "In the clear",
        "Can be read off what leaves by arithmetic alone, without a guess. A check that leaves an error says so.",
    ),
    ("Policy", "Limits that were set beforehand: beyond one the audit says block."),
    ("Residual risk", "What is left with the measures in place; section 7 states it."),
    ("Proxy", "A number that stands for the risk, computed without an attack."),
    ("Jacobian J", "How what leaves changes with the input, to first order; JᵀJ weighs each direction of the input."),
    ("MAP attacker", "Takes the input that is most probable given what left."),
    ("Matching loss", "Distance between what left and what a guess would have sent, which an attack makes small."),
    (
        "Kruskal-Wallis, Mann-Whitney",
        "Tests of whether groups differ; p is how often chance alone would differ as much. Holm's correction allows "
        "for several tests at once.",
    ),
    ("ε², Cliff's delta", "How large a difference of groups is: 0 none, 1 (of delta, −1 too) complete."),
    ("Gini", "A measure of unevenness between 0 (all alike) and 1 (one carries all)."),
    ("Exact", "Computed without an approximation but for rounding."),
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


def provenance_section(facts: Facts, changes: Changes | None = None) -> Section:
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
    if changes is not None:
        blocks += change_blocks(changes)
    blocks += [Subheading("Methods and limits"), DefinitionList(_methods(facts), compact=True)]
    blocks += [
        Subheading("Proxies in plain words"),
        DefinitionList(
            tuple((facts.title(proxy), proxy_words(facts, proxy)) for proxy in facts.proxy_ids), compact=True
        ),
        Subheading("Terms"),
        DefinitionList(
            tuple({**dict(_TERMS), **dict(_TERMS_OF_UPLOADS if facts.is_joint else ())}.items()), compact=True
        ),
    ]
    return Section("provenance", "Provenance, methods and words", tuple(blocks))


def proxy_words(facts: Facts, proxy: str) -> str:
    """What a proxy means, its formula and its source."""
    info = facts.info(proxy)
    if info is None:
        return "No description."
    formula = f"Formula: {info.formula}." if info.formula else ""
    return " ".join(filter(None, (sentence(info.summary), formula, f"Source: {info.source}.")))


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
            "Posterior error is an average over noise and prior. A single attack can do better or worse.",
        ),
        (
            "Variability",
            "The same seed gives the same numbers on the same machine. Another draw of the noise moves I2F and MAP "
            "I2F, but not revealed fraction and posterior error.",
        ),
        (
            "Data units",
            "Errors are root mean squares per input coordinate in the units of the data: "
            f"values from {' to '.join(given(end) for end in facts.result.data.input_range)}.",
        ),
    )


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
