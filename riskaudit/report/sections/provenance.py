"""Section 8: what was audited, with what, and how to get the same numbers again."""

from __future__ import annotations

from riskaudit.document import tables
from riskaudit.document.blocks import Block, DefinitionList, Paragraph, Section, Snippet, Subheading, Table
from riskaudit.formatting import given, number, sentence, short
from riskaudit.report.sections.baseline import baseline_blocks
from riskaudit.results import AuditResult
from riskaudit.results.facts import Facts


def provenance_section(facts: Facts, baseline: AuditResult | None) -> Section:
    """Hashes, settings, cost, command, changes, methods and words."""
    result = facts.result
    blocks: list[Block] = [_pairs("sources", "What was audited", _sources(result))]
    blocks.append(_pairs("settings", "Settings that decide the numbers", _settings(result)))
    memory = result.cost.peak_memory_bytes
    pairs = [
        ("Time", f"{number(result.cost.seconds)} s"),
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
    blocks += glossary_blocks(facts)
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
    pairs.append(("Prior", f"{prior.kind}, mean {number(prior.mean)}, std {number(prior.std)}"))
    return pairs


def _with_reason(name: str, reason: str | None) -> str:
    return f"{short(name)}: {reason}" if reason else short(name)


def _methods(facts: Facts) -> tuple[tuple[str, str], ...]:
    return (
        (
            "Method",
            "The release is linearised at each sample (its Jacobian J). With noise of known law and a Gaussian prior, "
            "the eigenvalues of JᵀJ say how precisely each direction of the input can be recovered.",
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


_TERMS = (
    ("Release", "What leaves the client: the gradient and everything done to it before upload."),
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


def glossary_blocks(facts: Facts) -> list[Block]:
    """The proxies of this audit and the terms used."""
    proxies: list[tuple[str, str]] = []
    for proxy in facts.proxy_ids:
        info = facts.info(proxy)
        formula = f"Formula: {info.formula}." if info and info.formula else ""
        words = [] if info is None else [sentence(info.summary), formula, f"Source: {info.source}."]
        proxies.append((facts.title(proxy), " ".join(word for word in words if word) or "No description."))
    return [
        Subheading("Proxies in plain words"),
        DefinitionList(tuple(proxies), compact=True),
        Subheading("Terms"),
        DefinitionList(_TERMS, compact=True),
    ]
