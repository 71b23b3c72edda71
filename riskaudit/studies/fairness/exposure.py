"""From an audit to a fairness study: on whom the leak falls, whether groups differ, what the average hides.

A pure function of an `AuditResult`. A sample counts where its value may be relied on (exact, converged or bracketed);
the others are listed as not assessed, never as safe. Of intervals the values are compared and the cautious ends
decide who is exposed.

Influence: ||change of the release|| <= sqrt(l_1) ||change of the input||, to first order (Zhang et al., NeurIPS 2023,
implications of the inversion influence function): a sample with a large l_1 is one through which a small perturbation
of the input moves training most. Not valid for perturbations over which the Jacobian changes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from riskaudit.results import RELIABLE, AuditResult, Estimate, SampleRow
from riskaudit.results.ranks import num_rivals
from riskaudit.results.verdicts import HEADLINE, attacker_of, error_of, headline_of
from riskaudit.results.words import COMPARED, Riskier
from riskaudit.statistics.groups import (
    FEWEST_SAMPLES,
    epsilon_squared,
    group_statistic,
    kruskal_wallis,
    least_p_value,
    pair_tests,
)
from riskaudit.statistics.rank_correlation import rank_correlation
from riskaudit.statistics.summaries import (
    GROUP_CONFIDENCE,
    Measure,
    ends_of,
    gini,
    grouped,
    lorenz_curve,
    top_share,
    values_by_group,
)
from riskaudit.studies.fairness.record import (
    ATTACK_RMSE,
    NO_GROUP,
    Distribution,
    FairnessStudy,
    GroupComparison,
    GroupPair,
    GroupSummary,
    InfluenceLink,
    LorenzPoint,
    SampleExposure,
)
from riskaudit.studies.rows import strongest
from riskaudit.studies.verify.record import VerifyStudy

# A sample with less of the average's protection than this is one that the average hides.
THRESHOLD = 0.1
# Level of the tests, after Holm's correction.
LEVEL = 0.05
NUM_RESAMPLES = 500
# The correction leaves out each sample in turn, and changes nothing for so many.
_MOST_FOR_BCA = 1000
_RISKIER: dict[str, Riskier] = {**COMPARED, ATTACK_RMSE: "lower"}


def fairness(
    result: AuditResult, groups: Mapping[str, str] | None = None, *, groups_name: str | None = None
) -> FairnessStudy:
    """Who is exposed, by sample, class and group.

    Args:
        result: an audit; where it holds a verify study, the strongest attack counts as a measure too.
        groups: group by sample id, to compare besides classes; samples without one form the group `NO_GROUP`.
        groups_name: where the groups came from, for the record.
    """
    attacked, notes = _attacked(result)
    attacker = attacker_of(result.release)
    headline, error = headline_of(attacker), error_of(attacker)
    measures: dict[str, Measure] = {
        headline: lambda row: reliable(row.proxies.get(headline)),
        error: lambda row: reliable(row.proxies.get(error)),
    }
    if attacked:
        measures[ATTACK_RMSE] = lambda row: attacked.get(row.id)
    rows = result.samples
    # Where there is no point value the upper end, which makes the share of the average smaller.
    errors = [value for row in rows if (value := _value_or_high(row.proxies.get(error))) is not None]
    average = statistics.fmean(errors) if errors else None
    exposures = [_exposure(row, error, average, groups, attacked.get(row.id)) for row in rows]
    partitions: dict[Literal["class", "group"], dict[str, list[SampleRow]]] = {"class": _classes(result)}
    if groups is not None:
        partitions["group"] = grouped(rows, lambda row: groups.get(row.id, NO_GROUP))
        notes += _group_notes(rows, groups)
    noise = result.release.noise
    return FairnessStudy(
        noise_std=result.release.reference_noise_std if noise is None else noise.std,
        groups_name=groups_name,
        distributions=[_distribution(rows, name, measure) for name, measure in measures.items()],
        comparisons=[
            _comparison(by, members, name, measure, result.settings.seed)
            for by, members in partitions.items()
            if members
            for name, measure in measures.items()
        ],
        average_protection=average,
        threshold=THRESHOLD,
        exposed=[
            exposure.sample_id
            for exposure in sorted(exposures, key=lambda exposure: exposure.protection or 0.0)
            if exposure.share_of_average is not None and exposure.share_of_average < THRESHOLD
        ],
        not_assessed=[exposure.sample_id for exposure in exposures if exposure.protection is None],
        samples=exposures,
        influence=_influence_link(rows, exposures, result.settings.seed)
        if attacker is None
        else InfluenceLink(num_samples=0, note="l₁ is that of the whole upload, the same for all its samples"),
        notes=notes,
    )


def reliable(estimate: Estimate | None) -> float | None:
    """A value that may be relied on."""
    return None if estimate is None else estimate.reliable


def _value_or_high(estimate: Estimate | None) -> float | None:
    if estimate is None or not estimate.assessed:
        return None
    return estimate.ends[1] if estimate.value is None else estimate.value


def protection(row: SampleRow, error: str) -> float | None:
    """Cautious end of a sample's posterior error, whose id is ``error``; None where nothing may be claimed."""
    estimate, calibrated = row.proxies.get(error), row.calibrated.get(error)
    if estimate is None or estimate.status not in RELIABLE:
        return None
    low = estimate.value if estimate.low is None else estimate.low
    if calibrated is not None and low is not None:
        return None if calibrated.low is None else min(low, calibrated.low)
    return low


def influence(row: SampleRow) -> float | None:
    """sqrt(l_1) with the upper end of l_1; None where no upper end is known."""
    solved, curvature = row.solvers.get("largest_eigenvalue"), row.proxies.get("lavp_l2_max")
    for estimate, scale in ((solved, 1.0), (curvature, 0.5)):
        if estimate is None or estimate.status == "failed":
            continue
        high = estimate.value if estimate.high is None and estimate.status == "exact" else estimate.high
        if high is not None and high >= 0:
            return math.sqrt(scale * high)
    return None


def _attacked(result: AuditResult) -> tuple[dict[str, float], list[str]]:
    """The strongest attack's RMSE per sample at the audit's own noise level, and what to know of it."""
    study = result.studies.get(VerifyStudy)
    if study is None:
        return {}, []
    audited_std = 0.0 if result.release.noise is None or not result.release.defended else result.release.noise.std
    errors = {
        sample: error
        for (level, sample), (error, _) in strongest(study.attacks).items()
        if math.isclose(level, audited_std, rel_tol=1e-6)
    }
    notes = []
    if errors and study.control.status == "failed":
        notes.append("the attacks failed their positive control: their errors are no evidence of protection")
    return errors, notes


def _exposure(
    row: SampleRow, error: str, average: float | None, groups: Mapping[str, str] | None, attacked: float | None
) -> SampleExposure:
    protected = protection(row, error)
    return SampleExposure(
        sample_id=row.id,
        target=row.target,
        group=None if groups is None else groups.get(row.id, NO_GROUP),
        posterior_rmse=row.proxies.get(error),
        protection=protected,
        share_of_average=protected / average if protected is not None and average else None,
        influence=influence(row),
        attack_rmse=attacked,
    )


def _distribution(rows: Sequence[SampleRow], name: str, measure: Measure) -> Distribution:
    assessed = [(value, row.id) for row in rows if (value := measure(row)) is not None]
    riskier, left_out = _RISKIER[name], len(rows) - len(assessed)
    if not assessed:
        return Distribution(
            measure=name,
            riskier=riskier,
            num_samples=0,
            num_left_out=left_out,
            note="no sample has a value that may be relied on",
        )
    values = [value for value, _ in assessed]
    worst, sample = (max if riskier == "higher" else min)(assessed, key=lambda pair: pair[0])
    median = statistics.median(values)
    note = "all values are equal" if min(values) == max(values) else None
    return Distribution(
        measure=name,
        riskier=riskier,
        num_samples=len(assessed),
        num_left_out=left_out,
        mean=statistics.fmean(values),
        median=median,
        worst=worst,
        worst_sample=sample,
        worst_to_median=worst / median if median > 0 else None,
        gini=gini(values),
        worst_tenth_share=top_share(values, 0.1, largest=riskier == "higher"),
        lorenz=[LorenzPoint(samples=samples, quantity=held) for samples, held in lorenz_curve(values)],
        note="too few samples: one value can't be unequal" if len(values) == 1 else note or _doubt(rows, name),
    )


def _doubt(rows: Sequence[SampleRow], name: str) -> str | None:
    """That the numbers rest on intervals, and how far these leave open which sample is the worst."""
    ends = ends_of(rows, name)
    wide = sum(low < high for low, high in ends)
    if not wide:
        return None
    rivals = num_rivals(ends, _RISKIER[name])
    worst = f"; which of {rivals} samples is the worst can't be told" if rivals > 1 else ""
    return f"{wide} of {len(ends)} values are estimates inside intervals{worst}"


def _classes(result: AuditResult) -> dict[str, list[SampleRow]]:
    """Samples by the name of their class; empty where targets aren't class numbers."""
    names = result.data.class_names or []
    distinct = len(set(names)) == len(names)

    def name(row: SampleRow) -> str | None:
        target = row.target
        if not isinstance(target, int):
            return None
        if not 0 <= target < len(names):
            return str(target)
        return names[target] if distinct else f"{names[target]} ({target})"

    return grouped(result.samples, name)


def _comparison(
    by: Literal["class", "group"], members: dict[str, list[SampleRow]], name: str, measure: Measure, seed: int
) -> GroupComparison:
    nonempty = values_by_group(members, measure)
    test = kruskal_wallis(nonempty, noun="classes" if by == "class" else "groups")
    tested = test.p_value is not None
    any_difference = test.p_value is not None and test.p_value < LEVEL
    num_tested = sum(len(numbers) for numbers in nonempty.values() if len(numbers) >= FEWEST_SAMPLES)
    pairs = [
        GroupPair(**pair.model_dump(), differs=any_difference and pair.p_adjusted < LEVEL)
        for pair in (pair_tests(nonempty) if tested else [])
    ]
    largest = sorted((len(numbers) for numbers in nonempty.values()), reverse=True)[:2]
    hopeless = bool(pairs) and len(pairs) * least_p_value(*largest) >= LEVEL
    sign = -1.0 if _RISKIER[name] == "higher" else 1.0
    medians = {group: statistics.median(numbers) for group, numbers in nonempty.items()}
    ordered = sorted(members, key=lambda group: (group not in medians, sign * medians.get(group, 0.0)))
    return GroupComparison(
        by=by,
        measure=name,
        groups=[
            GroupSummary(
                name=group,
                num_samples=len(members[group]),
                median=medians.get(group),
                statistic=group_statistic(nonempty[group], confidence=GROUP_CONFIDENCE, seed=seed)
                if group in nonempty
                else None,
            )
            for group in ordered
        ],
        kruskal_wallis=test,
        epsilon_squared=None if test.statistic is None else epsilon_squared(test.statistic, num_tested),
        differs=any_difference if tested else None,
        pairs=sorted(pairs, key=lambda pair: (pair.p_adjusted, -abs(pair.effect))),
        note=f"so few samples can't tell {len(pairs)} pairs apart, whatever their values" if hopeless else None,
        doubt=_doubt_of_groups(members, ordered, name),
    )


def _doubt_of_groups(members: Mapping[str, Sequence[SampleRow]], ordered: Sequence[str], name: str) -> str | None:
    """That medians rest on intervals, and how many groups may be the most exposed."""
    ends = [intervals for group in ordered if (intervals := ends_of(members[group], name))]
    spans = [(statistics.median(low for low, _ in each), statistics.median(high for _, high in each)) for each in ends]
    if not any(low < high for low, high in spans):
        return None
    rivals = num_rivals(spans, _RISKIER[name])
    first = f"; which of {rivals} has the most exposed median can't be told" if rivals > 1 else ""
    return f"medians rest on intervals{first}"


def _influence_link(rows: Sequence[SampleRow], exposures: Sequence[SampleExposure], seed: int) -> InfluenceLink:
    pairs = [
        (exposure.influence, value)
        for row, exposure in zip(rows, exposures, strict=True)
        if exposure.influence is not None and (value := reliable(row.proxies.get(HEADLINE))) is not None
    ]
    moves, revealed = [move for move, _ in pairs], [value for _, value in pairs]
    correlation = rank_correlation(
        moves,
        revealed,
        confidence=GROUP_CONFIDENCE,
        seed=seed,
        num_resamples=NUM_RESAMPLES,
        method="BCa" if len(pairs) <= _MOST_FOR_BCA else "percentile",
        pairs=False,
    )
    note = correlation.note
    if note is not None and note.startswith("all "):
        note = "the influence or the revealed fraction of all samples is the same"
    return InfluenceLink(
        num_samples=correlation.num_samples,
        spearman=correlation.spearman,
        low=correlation.low,
        high=correlation.high,
        note=note,
    )


def _group_notes(rows: Sequence[SampleRow], groups: Mapping[str, str]) -> list[str]:
    """Counts only: names in a file of groups may be those of persons."""
    ids = {row.id for row in rows}
    notes = []
    missing, unknown = sum(row.id not in groups for row in rows), len(set(groups) - ids)
    if missing:
        notes.append(f"{missing} of {len(rows)} samples without a group of their own form the group {NO_GROUP!r}")
    if unknown:
        notes.append(f"{unknown} of {len(groups)} ids with a group are not among the audited samples")
    return notes
