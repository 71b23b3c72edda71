"""Section 3: how much leaks, over all samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

import numpy as np

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Callout, Cell, Figure, Paragraph, Section, Subheading, Table
from riskaudit.document.cells import number_cell, tally
from riskaudit.document.plots import Curve, CurvePlot, Dot, DotPlot, Reference
from riskaudit.formatting import count, decibels, given, number, percent, sentence, short
from riskaudit.report.sections.clear import clear_blocks
from riskaudit.report.sections.columns import column_blocks
from riskaudit.report.sections.crowd import crowd_blocks
from riskaudit.report.sections.positions import position_blocks
from riskaudit.report.sections.schemes import attacker_words, by_whom
from riskaudit.results import RELIABLE, Estimate
from riskaudit.results.estimates import EstimateColumn
from riskaudit.results.facts import Facts
from riskaudit.results.ranks import position
from riskaudit.results.verdicts import error_of, headline_of

_Ranked = tuple[float, int]
# More dots than this can't be told apart, and drawing them takes long.
MOST_DOTS = 1000
_SHARES = (
    (0.0, "Minimum"),
    (0.1, "10 %"),
    (0.25, "25 %"),
    (0.5, "Median"),
    (0.75, "75 %"),
    (0.9, "90 %"),
    (1.0, "Maximum"),
)


def leaks_section(facts: Facts) -> Section:
    """Distributions of the two headline proxies, or why there are none, and what the crowd protects."""
    blocks: list[Block] = [*clear_blocks(facts)]
    blocks += [Subheading("How much leaks on average over the noise")] if blocks else []
    blocks.append(Paragraph(_how_to_read(facts)))
    for proxy, figure in ((facts.headline, revealed_figure), (facts.error, rmse_figure)):
        if facts.num_known(proxy):
            blocks.append(figure(facts))
        else:
            reason = facts.reason(proxy) or f"statuses of the samples: {tally(facts.statuses(proxy))}"
            title = f"{facts.title(proxy)}: not assessed"
            blocks.append(Callout(title, (f"{sentence(reason)} This is not a finding of safety.",), "unknown"))
    successes = _successes(facts)
    if successes:
        blocks.append(success_figure(facts, successes))
    if not facts.num_known(facts.headline):
        blocks.append(_distribution_table(facts, facts.proxy_ids, "stand-ins", "What was computed instead"))
    blocks += column_blocks(facts)
    blocks += position_blocks(facts)
    blocks += crowd_blocks(facts, thresholds(facts))
    return Section("how-much-leaks", "How much leaks", tuple(blocks))


def _how_to_read(facts: Facts) -> str:
    limits = facts.result.settings.thresholds
    who = attacker_words(facts) if facts.is_joint else "this attacker"
    return (
        f"The revealed fraction is the share of the input's dimensions that the release pins down for {who}: "
        "0 tells nothing beyond the prior, 1 tells all. The same number says how much better than guessing from the "
        "prior a reconstruction gets: −10 log10(1 − revealed fraction) decibels of mean squared error. "
        f"A sample is high above {given(limits.high)} ({decibels(limits.high)}), medium from {given(limits.medium)} "
        f"({decibels(limits.medium)}) on, and low below. Posterior error is the error that is left to the attacker, "
        "per input coordinate in data units: smaller is worse."
        + (" Where a number comes with an interval, the level follows the interval's upper end." * facts.bracketed)
    )


def thresholds(facts: Facts) -> tuple[Reference, ...]:
    """The verdict levels as lines, with what they mean in decibels."""
    limits = facts.result.settings.thresholds
    return (
        Reference(limits.medium, f"medium: {given(limits.medium)} = {decibels(limits.medium)}"),
        Reference(limits.high, f"high: {given(limits.high)} = {decibels(limits.high)}"),
    )


def sample_dots(facts: Facts, proxy: str, order: Literal["rising", "falling"]) -> tuple[Dot, ...]:
    """A dot per sample with a value or an interval, riskiest first, at most `MOST_DOTS` of them."""
    riskier = "higher" if order == "falling" else "lower"
    positions = [(position(estimate, riskier), place) for place, estimate in facts.estimates(proxy).by_place()]
    ranked = [(value, place) for value, place in positions if value is not None]
    ranked.sort(key=lambda pair: pair[0], reverse=order == "falling")
    rows = (facts.result.samples[place] for _, place in _evenly(ranked, MOST_DOTS))
    return tuple(
        Dot(
            short(row.id, 14),
            row.proxies[proxy].value,
            row.proxies[proxy].low,
            row.proxies[proxy].high,
            row.verdict,
            row.proxies[proxy].status in RELIABLE,
        )
        for row in rows
    )


def _evenly(ranked: list[_Ranked], most: int) -> list[_Ranked]:
    """At most so many of a ranked list, spread evenly over the ranks, the first and the last among them."""
    last = len(ranked) - 1
    if last < most:
        return ranked
    return [ranked[round(number * last / (most - 1))] for number in range(most)]


def revealed_figure(facts: Facts) -> Figure:
    """Every sample's revealed fraction against the verdict levels."""
    proxy = facts.headline
    number_of = facts.num_known(proxy)
    high = facts.result.settings.thresholds.high
    cautious = facts.cautious(proxy)
    over = sum(value > high for value in cautious)
    lies = ("may lie" if facts.bracketed else "lies" if over == 1 else "lie") + " above"
    dots = sample_dots(facts, proxy, "falling")
    wide = facts.without_point(proxy)
    largest = facts.words(proxy, max)
    largest = largest if wide else _at_most(max(facts.values(proxy)), max(cautious))
    return Figure(
        id="revealed",
        title=(
            f"{over:,} of {count(number_of, 'sample')} with a value{' or an interval' * bool(wide)} {lies} the high "
            f"level of {given(high)}; the median is {facts.words(proxy, median)} and the largest "
            f"{largest}"
        ),
        alt=(
            f"Dot plot of the revealed fraction of {count(number_of, 'sample')}, largest on top, from "
            f"{facts.words(proxy, min)} to {facts.words(proxy, max)}, "
            "with lines at the medium and high levels."
        ),
        plot=DotPlot("revealed fraction (0 = nothing, 1 = all)", dots, thresholds(facts), (0.0, 1.0)),
        table=_distribution_table(
            facts, _both(facts, proxy), "revealed-distribution", "Distribution of the revealed fraction"
        ),
        caption=figure_caption(facts, proxy),
    )


def rmse_figure(facts: Facts) -> Figure:
    """Every sample's posterior error against a guess from the prior."""
    proxy = facts.error
    number_of = facts.num_known(proxy)
    ends = [end for each in facts.estimates(proxy) for end in (each.value, each.high) if end is not None]
    guess = facts.result.prior.std
    dots = sample_dots(facts, proxy, "rising")
    least = min(facts.cautious(proxy))
    return Figure(
        id="rmse",
        title=_rmse_title(facts, least, guess),
        alt=(
            f"Dot plot of the posterior error of {count(number_of, 'sample')}, smallest on top, from "
            f"{facts.words(proxy, min)} to {facts.words(proxy, max)}; "
            f"a line marks the prior's {number(guess)}."
        ),
        plot=DotPlot(
            "posterior error (RMSE per coordinate, data units)",
            dots,
            (Reference(guess, f"guess from the prior: {number(guess)}"),),
            (0.0, 1.08 * max(guess, *ends)),
        ),
        table=_distribution_table(
            facts, _both(facts, proxy), "rmse-distribution", "Distribution of the posterior error"
        ),
        caption=figure_caption(facts, proxy),
    )


def _rmse_title(facts: Facts, least: float, guess: float) -> str:
    """How well the most exposed sample can be reconstructed, beside a guess from the prior."""
    if least == 0:
        # No attack comes to an error of 0: it is an end that says nothing, or below what numbers here tell from it.
        told = any(each.value == 0 for each in facts.estimates(facts.error))
        known = "is too small to be told from 0" if told else "is bounded from below by nothing"
        return (
            f"The RMSE to which the most exposed sample can be reconstructed{by_whom(facts)} {known}; guessing from "
            f"the prior leaves {number(guess)}"
        )
    share = least / guess if guess > 0 else 0.0
    return (
        f"The most exposed sample {'may be' if facts.bracketed else 'can be'} reconstructed to an RMSE of "
        f"{number(least)} on average{by_whom(facts)}, "
        f"{percent(share)} of what guessing from the prior leaves ({number(guess)})"
    )


@dataclass(frozen=True)
class _Success:
    """Every sample's probability of success within one tolerance, where one is known, or an end of it."""

    tolerance: float
    samples: EstimateColumn

    @property
    def mean(self) -> float:
        return fmean(map(_cautious, self.samples))

    def worst(self, revealed: Mapping[int, float]) -> tuple[int, Estimate]:
        """The likeliest to be reconstructed, by its place; where several are certain, the one that reveals most."""
        return max(self.samples.by_place(), key=lambda pair: (_cautious(pair[1]), revealed.get(pair[0], 0.0)))


def _successes(facts: Facts) -> list[_Success]:
    """By tolerance, the smallest first."""
    columns = defaultdict[float, EstimateColumn](EstimateColumn)
    for place, row in enumerate(facts.result.samples):
        for success in row.success_probability:
            if success.probability is not None or success.high is not None:
                estimate = Estimate(
                    value=success.probability, low=success.low, high=success.high, status=success.status
                )
                columns[success.tolerance].append(place, estimate)
    return [_Success(tolerance, columns[tolerance]) for tolerance in sorted(columns)]


def _cautious(success: Estimate) -> float:
    value = success.value if success.high is None else success.high
    return 1.0 if value is None else value


def success_figure(facts: Facts, successes: Sequence[_Success]) -> Figure:
    """How probably the attacker comes within each tolerance: on average, and for the most exposed sample."""
    headline, rows = facts.estimates(facts.headline), facts.result.samples
    revealed = {place: position(estimate, "higher") or 0.0 for place, estimate in headline.by_place()}
    bounded = any(success.value is None for each in successes for success in each.samples)
    closest, widest = successes[0], successes[-1]
    place, worst = closest.worst(revealed)
    at_most = "at most " if bounded else ""
    who = sentence(attacker_words(facts)).removesuffix(".") if facts.is_joint else "An attacker"
    columns: tables.Columns[_Success] = (
        tables.setting("Tolerance (RMSE)", lambda each: each.tolerance),
        tables.column("Mean over samples", lambda each: _probability_cell(list(each.samples))),
        tables.column("Most exposed sample", lambda each: _probability_cell([each.worst(revealed)[1]])),
        tables.text("Which", lambda each: short(rows[each.worst(revealed)[0]].id)),
        tables.text("Status of the samples", lambda each: tally(success.status for success in each.samples)),
    )
    words = (
        "The probability is over the prior and the noise, for the best attacker with that prior, to first order."
        + (" Where not all eigenvalues are known it is bounded, and the upper ends are drawn." * bounded)
    )
    if not facts.result.release.defended:
        words += " All at the reference noise: without it, assume full disclosure."
    return Figure(
        id="success",
        title=(
            f"{who} comes within an RMSE of {given(closest.tolerance)} with a probability of "
            f"{at_most}{percent(closest.mean)} on average, and of {at_most}{percent(_cautious(worst))} for the most "
            f"exposed sample ({short(rows[place].id, 14)})"
        ),
        alt=(
            f"Two curves of the attacker's probability of success over {count(len(successes), 'tolerance')} from "
            f"{given(closest.tolerance)} to {given(widest.tolerance)}: the mean over samples, and the most exposed "
            "sample."
        ),
        plot=CurvePlot(
            "tolerance: RMSE within which a reconstruction counts (data units)",
            "probability of success",
            tuple(each.tolerance for each in successes),
            (
                Curve("most exposed sample", tuple(_cautious(each.worst(revealed)[1]) for each in successes)),
                Curve("mean over samples", tuple(each.mean for each in successes)),
            ),
            y_limits=(0.0, 1.0),
        ),
        table=tables.table(
            "success-probability", "Probability that the attacker comes within a tolerance", successes, columns
        ),
        caption=words,
    )


def _probability_cell(successes: Sequence[Estimate]) -> Cell:
    """The mean probability, or its upper end with the lower one below it."""
    cautious = fmean(map(_cautious, successes))
    if all(success.value is not None and success.high is None for success in successes):
        return Cell(percent(cautious), cautious)
    low = fmean((success.value or 0.0) if success.low is None else success.low for success in successes)
    return Cell(f"at most {percent(cautious)}", cautious, detail=f"at least {percent(low)}")


def _both(facts: Facts, proxy: str) -> tuple[str, ...]:
    """A proxy of the attacker who decides, and the same of the other one, where there are two."""
    pairs = ((headline_of("informed"), headline_of("outsider")), (error_of("informed"), error_of("outsider")))
    others = [name for pair in pairs if proxy in pair for name in pair if name != proxy] if facts.is_joint else []
    return (proxy, *(name for name in others if facts.num_known(name)))


def _at_most(value: float, end: float) -> str:
    return number(value) if end <= value else f"{number(value)}, at most {number(end)}"


def figure_caption(facts: Facts, proxy: str) -> str:
    """Symbols, statuses, and what is not drawn of a figure with a dot per sample."""
    statuses = facts.statuses(proxy)
    drawn = facts.num_known(proxy)
    missing = facts.num_samples - drawn
    gap = f" {count(missing, 'sample')} without a value {'is' if missing == 1 else 'are'} not drawn." if missing else ""
    intervals = any(estimate.low is not None for estimate in facts.estimates(proxy))
    confidence = facts.result.settings.confidence
    sure = f", which hold for all samples together with a confidence of {given(confidence)}" if confidence else ""
    bars = f" Bars are the intervals of the estimates{sure}." if intervals else ""
    if facts.without_point(proxy):
        bars += " Where an interval is too wide for a point value there is only its bar."
    if drawn > MOST_DOTS:
        bars += f" {MOST_DOTS:,} of {drawn:,} samples are drawn, spread evenly over the ranks."
    hollow = " Hollow marks did not converge." if "not_converged" in statuses else ""
    if not facts.result.release.defended:
        gap += " All at the reference noise: without it, assume full disclosure."
    if facts.is_joint:
        gap += f" Numbers are those of {attacker_words(facts)}."
    return f"Symbols: ▲ high, ◆ medium, ● low. Status: {tally(statuses)}.{bars}{hollow}{gap}"


def _quantile_cell(facts: Facts, proxy: str, share: float) -> Cell:
    def quantile(values: list[float]) -> float:
        return float(np.interp(share * (len(values) - 1), range(len(values)), sorted(values)))

    if not facts.num_known(proxy):
        return Cell("no value", tone="unknown")
    if facts.without_point(proxy):
        return Cell(facts.words(proxy, quantile))
    return number_cell(quantile(facts.values(proxy)))


def _distribution_table(facts: Facts, proxies: Sequence[str], table_id: str, caption: str) -> Table:
    def quantile(share: float, title: str) -> tables.RowColumn[str]:
        return tables.column(title, lambda proxy: _quantile_cell(facts, proxy, share))

    columns: tables.Columns[str] = (
        tables.text("Proxy", facts.title),
        *(quantile(share, title) for share, title in _SHARES),
        tables.text("Status of the samples", lambda proxy: tally(facts.statuses(proxy))),
    )
    note = facts.reasons_note(proxies)
    return tables.table(table_id, f"{caption} over samples with a value", proxies, columns, note=note)
