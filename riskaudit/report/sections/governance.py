"""Section 7: the audit in the words of a data-protection impact assessment."""

from __future__ import annotations

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Callout, Paragraph, Section
from riskaudit.formatting import count, given, percent, sentence, short
from riskaudit.report.sections.columns import columns_sentence, exposures
from riskaudit.report.sections.levels import level_words
from riskaudit.report.sections.protect import Recommendation
from riskaudit.report.sections.schemes import attacker_words
from riskaudit.report.sections.verdict import limit_words
from riskaudit.results.facts import Facts

_DECISIONS = {
    "allow": "Allow: no limit was exceeded and every sample was assessed.",
    "warn": "Warn: no limit was seen to be exceeded, but the audit can't confirm that all were kept.",
    "block": "Block: at least one limit was exceeded.",
}


def governance_section(facts: Facts) -> Section:
    """Control, decision, mapping, and lines to sign."""
    release = facts.result.release
    measure = (
        f"{release.noise.law} noise of standard deviation {given(release.noise.std)} per released entry"
        if release.defended and release.noise
        else f"none: the {'upload' if facts.is_joint else 'gradient'} leaves the client without noise"
    )
    recommended = Recommendation(facts).release
    rows = (
        (
            "Processing",
            f"One upload ({short(release.spec, 80)}) of the model {short(facts.result.checkpoint.name)} computed on "
            "private inputs.",
        ),
        ("Risk", "Whoever receives the upload, or reads it on the way, reconstructs private inputs from it."),
        ("Likelihood", _likelihood(facts)),
        (
            "Severity",
            "Not measured: it depends on what the inputs are and whom they concern. To be filled in: "
            "__________________",
        ),
        ("Measures in place", f"{measure[0].upper()}{measure[1:]}."),
        (
            "Measures proposed",
            f"Release {recommended} (section 5)." if recommended else "None could be computed; see section 5.",
        ),
        ("Residual risk", _residual(facts)),
        ("Review", "Audit again when the model, the data, the release or the attacker's knowledge changes."),
    )
    blocks: list[Block] = [
        Paragraph("Gradient disclosure audit before upload.", lead="Control."),
        Paragraph(_decision_text(facts), lead="Decision."),
        tables.pairs(
            "dpia",
            "Where this audit fits in a data-protection impact assessment",
            ("Step", "What this audit contributes"),
            rows,
        ),
        Callout(
            "This is not differential privacy",
            (
                "The audit predicts how well a stated attacker reconstructs these samples. It gives no guarantee for "
                "other attackers or other samples, and no ε. Noise that is chosen with its help is a heuristic unless "
                "sensitivity and privacy loss are accounted for separately.",
            ),
        ),
        Paragraph("The box to sign is in section 1.", lead="Sign-off."),
    ]
    return Section("governance", "For governance", tuple(blocks))


def _decision_text(facts: Facts) -> str:
    policy = facts.result.policy
    if policy is None:
        return (
            "None: no policy was given, so this audit measured and did not decide. "
            f"Samples: {level_words(facts)}. The decision is yours to record below."
        )
    text = f"{_DECISIONS[policy.decision]} Limits: {limit_words(policy)} (from {short(policy.source, 80)})."
    if policy.decision == "allow" and facts.num_assessed < facts.num_samples:
        text = (
            f"The policy says allow, but {count(facts.num_samples - facts.num_assessed, 'sample was', 'samples were')} "
            f"not assessed. Limits: {limit_words(policy)} (from {short(policy.source, 80)})."
        )
    reasons = " ".join(sentence(reason) for reason in policy.reasons)
    undefended = "" if facts.result.release.defended else " The release itself is undefended."
    return f"{text} {reasons}{undefended}".replace("  ", " ").strip()


def _likelihood(facts: Facts) -> str:
    if facts.num_assessed == 0:
        return "Not assessed. This must not be read as unlikely."
    if not facts.result.release.defended:
        start = "Without noise, assume that the inputs can be reconstructed. At the reference noise: "
    else:
        start = f"For {attacker_words(facts) if facts.is_joint else 'the attacker of section 2'}: "
    return f"{start}{level_words(facts)} (of {count(facts.num_samples, 'sample')})."


def _residual(facts: Facts) -> str:
    if facts.num_assessed == 0:
        return "Unknown: no sample could be assessed."
    values = facts.cautious(facts.headline)
    columns = exposures(facts)
    text = (
        f"As released: up to {percent(max(values))} of a sample's input is revealed."
        if values and facts.result.release.defended
        else "As released: assume full disclosure."
        if not facts.result.release.defended
        else "As released: see section 3."
    )
    if columns and facts.result.release.defended:
        text += f" {columns_sentence(facts, columns)}"
    std = Recommendation(facts).std
    if std is not None:
        text += _after_measure(facts, float(std))
    missing = facts.verdicts["not_assessed"]
    return text + (f" Unknown for {count(missing, 'sample')} without a verdict." if missing else "")


def _after_measure(facts: Facts, std: float) -> str:
    """The leak at ``std`` lies between the curve's two nearest points, since more noise never reveals more.

    Nor does it exceed a limit for which less noise was worked out.
    """
    below = [point for point in facts.result.noise_curve if point.std <= std]
    above = [point for point in facts.result.noise_curve if point.std >= std]
    if not below or not above:
        return " With the proposed noise: to be audited again."
    kept = [need.max_revealed for need in facts.result.noise_needed if need.std <= std]
    most = min([max(below, key=lambda point: point.std).revealed_fraction_max, *kept])
    least = min(above, key=lambda point: point.std).revealed_fraction_max
    return f" With the proposed noise: between {percent(least)} and {percent(most)} (noise curve, section 5)."
