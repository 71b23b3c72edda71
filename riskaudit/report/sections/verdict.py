"""Section 1: is this release within policy, in one box, and what to do next."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from riskaudit.document.blocks import Block, Bullets, Callout, Paragraph, Section, SignOff, Tone
from riskaudit.document.cells import tally
from riskaudit.formatting import count, given, inside, number, percent, sentence, short
from riskaudit.report.sections.changes import Changes, change_words
from riskaudit.report.sections.clear import clear_sentence
from riskaudit.report.sections.columns import columns_sentence, exposures
from riskaudit.report.sections.levels import level_rule, level_shares, level_words
from riskaudit.report.sections.protect import Recommendation
from riskaudit.report.sections.provenance import proxy_words
from riskaudit.report.sections.scale import example_blocks, scale_blocks
from riskaudit.report.sections.schemes import attacker_words
from riskaudit.results import Attacker, PolicyOutcome
from riskaudit.results.checks import Recovery, ids_in_the_clear
from riskaudit.results.facts import Facts
from riskaudit.results.verdicts import attacker_of, error_of, headline_of, tokens_of
from riskaudit.studies.verify.section import attacked_finding, read_attack_study

_LIMIT_WORDS = {
    "max_revealed": "at most {value} of a sample revealed (revealed fraction)",
    "max_revealed_fraction": "at most {value} of a sample revealed (revealed fraction)",
    "min_rmse": "posterior error of at least {value} (RMSE) for every sample",
    "min_posterior_rmse": "posterior error of at least {value} (RMSE) for every sample",
}

# What a check may find other than an input itself.
_BESIDES: dict[Recovery, str] = {
    "features": "features",
    "scaled_features": "features",
    "labels": "labels",
    "statistics": "the batch's statistics",
    "membership": "entries filled alone",
    "categories": "categories",
}


def verdict_section(facts: Facts, changes: Changes | None = None) -> Section:
    """The verdict box, the audit's warnings, and how to read the levels."""
    headline, tone, text = _headline(facts)
    rows = _box_facts(facts)
    if changes is not None:
        rows = (*rows, ("Since the baseline", f"{change_words(changes)}; more in section 8"))
    blocks: list[Block] = [
        Callout(
            title=headline,
            body=(text,),
            tone=tone,
            shares=level_shares(facts),
            facts=rows,
            computed=_computed(facts),
            steps=_next_steps(facts),
            brief=True,
        )
    ]
    blocks += scale_blocks(facts)
    blocks += [
        Paragraph("By signing, the named person accepts the residual risk that section 7 states.", lead="Sign-off."),
        SignOff(("Decision", "Name and role", "Conditions", "Date", "Signature")),
        *example_blocks(facts),
    ]
    policy = facts.result.policy
    if policy and policy.reasons:
        blocks.append(Bullets(tuple(sentence(reason) for reason in policy.reasons), lead="Reasons.", brief=True))
    if policy and policy.exceeded:
        shown = ", ".join(short(sample) for sample in policy.exceeded[:12])
        more = f" and {len(policy.exceeded) - 12} more" if len(policy.exceeded) > 12 else ""
        blocks.append(Paragraph(f"{shown}{more}.", lead="Samples over a limit:"))
    if facts.result.warnings:
        blocks.append(
            Bullets(tuple(sentence(text) for text in facts.result.warnings), lead="Warnings of the audit.", brief=True)
        )
    return Section("verdict", "Verdict", tuple(blocks))


def limit_words(policy: PolicyOutcome) -> str:
    """The limits of a policy in words."""
    words = [
        _LIMIT_WORDS.get(name, f"{name.replace('_', ' ')}: {{value}}").replace("{value}", given(value))
        for name, value in policy.limits.items()
    ]
    if policy.forbid_checks:
        words.append(f"nothing in the clear by {', '.join(policy.forbid_checks)}")
    return "; ".join(words) or "none set"


def _headline(facts: Facts) -> tuple[str, Tone, str]:
    """Title, tone and sentence of the box. Nothing that wasn't assessed is ever called within policy."""
    policy, release = facts.result.policy, facts.result.release
    missing = facts.verdicts["not_assessed"]
    clear = clear_sentence(facts)
    leak = _leak_sentence(facts)
    columns = exposures(facts)
    if columns:
        leak = f"{leak} {columns_sentence(facts, columns)}"
    if facts.num_known(_tokens(facts)):
        leak = f"{leak} {_tokens_sentence(facts)}"
    if clear is not None:
        leak = f"{sentence(clear)} On average over the noise {inside(leak)}"
    if policy is not None and policy.decision == "block":
        amount = f"{count(len(policy.exceeded), 'sample')} over the limit. " if policy.exceeded else ""
        return "Policy exceeded", "high", f"This release should not be sent as it is. {amount}{leak}"
    if facts.num_assessed == 0:
        return "Not assessed", "unknown", f"This is not a finding of safety: no sample could be assessed. {leak}"
    if policy is None:
        worst: Tone = "high" if facts.verdicts["high"] or clear else "medium" if facts.verdicts["medium"] else "low"
        tone = "medium" if worst == "low" and (missing or not release.defended) else worst
        return f"No policy given: {level_words(facts)}", tone, leak
    if missing or policy.decision == "warn":
        gap = f"{count(missing, 'sample')} could not be assessed. " if missing else ""
        text = f"No limit was seen to be exceeded, but the audit can't confirm that all were kept. {gap}{leak}"
        return "Not confirmed within policy", "medium", text
    if not release.defended:
        text = f"The limits hold only at a reference noise that the client does not add. {leak}"
        return "Within policy at the reference noise only", "medium", text
    return "Within policy", "medium" if clear else "low", f"Every sample was assessed and none is over a limit. {leak}"


def _leak_sentence(facts: Facts) -> str:
    num_known = facts.num_known(facts.headline)
    if not num_known:
        reason = facts.reason(facts.headline)
        because = f" ({reason.rstrip('.')})" if reason else ""
        return f"The revealed fraction has no value for any sample{because}."
    middle, worst = (facts.words(facts.headline, statistic, percent) for statistic in (median, max))
    spread = f"the median sample gives away {middle} of its input and the most exposed one "
    text = worst if num_known > 1 else f"The sample gives away {worst} of its input"
    most = max(facts.cautious(facts.headline))
    text += f" (at most {percent(most)})" if facts.bracketed and not facts.without_point(facts.headline) else ""
    start = spread + text if num_known > 1 else text
    if not facts.result.release.defended:
        start = f"at the reference noise, which is not in the release, {start[0].lower()}{start[1:]}"
    who = attacker_words(facts) if facts.is_joint else "the attacker described in section 2"
    return sentence(f"{start} to {who}")


def _tokens(facts: Facts) -> str:
    """The token recovery that decides."""
    return tokens_of(attacker_of(facts.result.release))


def _tokens_sentence(facts: Facts) -> str:
    """Of texts, how many of their tokens are told, which may be far more than is revealed of the embedding."""
    proxy = _tokens(facts)
    middle, most = facts.words(proxy, median, percent), percent(max(facts.cautious(proxy)))
    told = f"an attacker who knows a text's other tokens tells {middle} of the median text's and up to {most} of any"
    where = "" if facts.result.release.defended else "at the reference noise, "
    return sentence(f"{where}{told}")


def _box_facts(facts: Facts) -> tuple[tuple[str, str], ...]:
    result = facts.result
    policy = result.policy
    rows = [
        ("Question", "what whoever receives an upload can reconstruct of the private inputs behind it"),
        (
            "Limit",
            f"{limit_words(policy)} (from {short(policy.source, 80)})"
            if policy
            else "no policy given: set one with --max-revealed or --policy",
        ),
    ]
    for proxy, worst, label in _headline_proxies(facts):
        if facts.num_known(proxy):
            end = worst(facts.cautious(proxy))
            bracketed = any(estimate.status == "bracketed" for estimate in facts.estimates(proxy))
            bound = f", {'at most' if worst is max else 'at least'} {number(end)}" if bracketed else ""
            statuses = tally(facts.statuses(proxy))
            bound = "" if facts.without_point(proxy) else bound
            shown = f"median {facts.words(proxy, median)}, worst {facts.words(proxy, worst)}{bound} ({statuses})"
        else:
            shown = f"no value ({tally(facts.statuses(proxy))})"
        rows.append((label, shown))
    if facts.is_joint:
        rows.append(("Decided by", f"{facts.attacker}: {attacker_words(facts)}"))
    rows.append(("In the clear", _clear_words(facts)))
    rows.append(("Attacks", _attack_words(facts)))
    rows.append(("Release audited", _release_words(facts)))
    if result.warnings:
        rows.append(("Warnings", f"{len(result.warnings):,}, listed below the box to sign"))
    return tuple(rows)


def _computed(facts: Facts) -> tuple[tuple[str, str], ...]:
    """What the numbers of the box are."""
    proxies = ((label, proxy) for proxy, _, label in _headline_proxies(facts) if facts.num_known(proxy))
    return (*((label, proxy_words(facts, proxy)) for label, proxy in proxies), ("Level", level_rule(facts)))


def _headline_proxies(facts: Facts) -> list[tuple[str, Callable[[list[float]], float], str]]:
    """The two headline proxies with their riskier extreme and a label, and the other attacker's, where there is one."""
    proxies: list[tuple[str, Callable[[list[float]], float], str]] = []
    if facts.num_known(_tokens(facts)):
        proxies.append((_tokens(facts), max, "Token recovery"))
    if not facts.is_joint:
        return [*proxies, (facts.headline, max, "Revealed fraction"), (facts.error, min, "Posterior error")]
    attackers: list[Attacker] = ["informed", "outsider"]
    # The one who decides comes first.
    for attacker in sorted(attackers, key=lambda each: each != facts.attacker):
        proxies += [
            (headline_of(attacker), max, f"Revealed fraction, {attacker}"),
            (error_of(attacker), min, f"Posterior error, {attacker}"),
        ]
    return proxies


def _clear_words(facts: Facts) -> str:
    """Whose inputs can be read off what leaves, and whether that was checked at all."""
    checks = facts.result.checks
    if not checks:
        return "not checked"
    failed = sorted({finding.id for finding in checks if finding.status == "failed"})
    unchecked = f"; could not be checked: {', '.join(failed)}" if failed else ""
    ids = ids_in_the_clear(checks)
    found: dict[str, set[str]] = {}
    for finding in checks:
        if finding.status == "leak" and finding.recovers in _BESIDES:
            found.setdefault(_BESIDES[finding.recovers], set()).update(finding.sample_ids)
    besides = ", ".join(f"{what} of {len(whose):,}" for what, whose in found.items())
    more = f"; besides, {besides} (section 3)" if besides else ""
    return f"inputs of {len(ids):,} of {facts.num_samples:,} samples{more}{unchecked}"


def _attack_words(facts: Facts) -> str:
    """Whether attacks were run or calibrated against; a failed control is never left out."""
    study, calibration = read_attack_study(facts), facts.result.calibration
    ran = study.control_words() if study is not None else "none run"
    finding = attacked_finding(facts)
    if finding is not None:
        ran = f"{ran}; {finding[0].lower()}{finding[1:]}"
    if calibration is None:
        return f"{ran}; not calibrated against attacks"
    return (
        f"{ran}; calibrated on {count(calibration.num_samples, 'sample')} for {percent(calibration.coverage)} coverage"
    )


def _release_words(facts: Facts) -> str:
    release = facts.result.release
    if release.noise and release.defended:
        return f"{short(release.spec, 80)} ({release.noise.law} noise, std {given(release.noise.std)} per entry)"
    std = f"ranked at reference noise std {given(facts.noise_std)}" if facts.noise_std else "no reference noise"
    return f"{short(release.spec, 80)} (no noise; {std})"


def _next_steps(facts: Facts) -> tuple[str, ...]:
    policy = facts.result.policy
    steps: list[str] = []
    recommendation = Recommendation(facts)
    recommended = recommendation.option
    exposed = recommendation.is_called_for
    if exposed and recommended:
        steps.append(
            f'Audit again with {recommended[0]} "{recommended[1]}": the least noise that '
            f"{recommendation.purpose}. Section 5 has its size beside the upload's; what it costs in accuracy, "
            "training has to tell."
        )
    elif exposed and recommendation.obstacle is not None:
        steps.append(recommendation.obstacle)
    elif exposed:
        steps.append('Add noise to the release (--release "gaussian:STD") and audit again.')
    if exposed:
        steps.append("Look at the most exposed samples in section 4 and decide whether they may be used at all.")
    if facts.verdicts["not_assessed"]:
        steps.append(
            f"Find out why {count(facts.verdicts['not_assessed'], 'sample was', 'samples were')} not assessed "
            "(section 4, column Status; section 6) before deciding anything about them."
        )
    if policy is None:
        limit = given(facts.result.settings.thresholds.high)
        steps.append(
            f"Set a limit, for example --max-revealed {limit} (the level above which this report says high), so that "
            "the next audit ends in a decision."
        )
    if not steps:
        steps.append(
            "Record the decision in the box to sign. Audit again when the model, the data or the release changes."
        )
    return tuple(steps)
