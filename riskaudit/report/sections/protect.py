"""Section 5: how much noise brings the leak down, and the configuration to copy."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import median

from riskaudit.document.blocks import Block, Callout, Cell, Column, Figure, Paragraph, Section, Snippet, Table
from riskaudit.document.cells import estimate_cell, number_cell, tally
from riskaudit.document.plots import Curve, CurvePlot, Reference
from riskaudit.formatting import count, given, interval, number, percent, short
from riskaudit.report.recommendation import Recommendation
from riskaudit.report.sections.leaks import thresholds
from riskaudit.report.sections.noise_shapes import shaping_blocks
from riskaudit.results import Estimate, NoiseCurvePoint
from riskaudit.results.facts import Facts

_ON_INTERVALS = (
    " The numbers rest on intervals: the largest ones are upper ends, the means estimates whose own interval the table "
    "gives."
)


def protect_section(facts: Facts) -> Section:
    """Noise needed per target, the noise curve, a snippet, and the cost."""
    blocks: list[Block] = [_need_paragraph(facts)]
    if any(row.noise_std_for_target for row in facts.result.samples):
        blocks.append(_need_table(facts))
    if facts.result.noise_curve:
        blocks.append(noise_figure(facts))
    else:
        blocks.append(Callout("Noise curve: not assessed", ("This audit holds no noise curve.",), "unknown"))
    recommended = Recommendation(facts)
    if recommended.release is not None and recommended.command is not None and recommended.std is not None:
        blocks += [
            Snippet("Audit the recommended release before you adopt it", recommended.command, brief=True),
            Snippet(
                "The same in pyproject.toml",
                f"[tool.riskaudit]\nrelease = {json.dumps(recommended.release)}\nseed = {facts.result.settings.seed}",
            ),
            Paragraph(_cost_text(facts, float(recommended.std)), lead="What it costs."),
        ]
    noise = facts.result.release.noise
    if noise is not None and noise.law == "laplace":
        blocks.append(
            Callout(
                "Laplace noise",
                (
                    "The noise needed above is Gaussian. Laplace noise of the same standard deviation carries twice "
                    "the Fisher information, so an attacker who uses the right likelihood can do better: plan for "
                    "1.41 times the standard deviation if the release stays with Laplace noise.",
                ),
                "medium",
            )
        )
    blocks.append(
        Paragraph(
            "Smaller uploads (pruning), clipping, larger batches that are summed before anyone sees them (secure "
            "aggregation), or leaving out the most exposed samples. This audit puts no number on these; run it again "
            "with the changed release.",
            lead="Alternatives.",
        )
    )
    blocks += shaping_blocks(facts)
    return Section("what-would-protect", "What would protect", tuple(blocks))


def _need_paragraph(facts: Facts) -> Paragraph:
    needed, target = facts.noise_needed, facts.target_rmse
    if not needed or target is None:
        return Paragraph(
            "The noise needed to reach a target was not computed for any sample, so nothing is recommended here.",
            lead="Noise needed: not assessed.",
            brief=True,
        )
    unknown = facts.num_samples - len(needed)
    gap = f" For {count(unknown, 'sample')} the need is unknown, so the worst may be larger." if unknown else ""
    now = facts.noise_std
    release = facts.result.release
    have = "no noise"
    if release.defended and release.noise is not None and now:
        ratio = max(needed) / now
        have = f"{release.noise.law} noise of {given(now)}, " + (
            "which is enough for every sample with a known need" if ratio <= 1 else f"{number(ratio)} times too little"
        )
    return Paragraph(
        f"To leave the attacker an RMSE of at least {number(target)}, Gaussian noise of standard deviation "
        f"{number(median(needed))} per released entry suffices for the median sample and {number(max(needed))} for the "
        f"worst. The release has {have}.{gap}",
        lead="Noise needed.",
        brief=True,
    )


def _need_table(facts: Facts) -> Table:
    rows = []
    targets = {row.noise_std_for_target.target_rmse for row in facts.result.samples if row.noise_std_for_target}
    for target in sorted(targets):
        found = [
            (row, row.noise_std_for_target)
            for row in facts.result.samples
            if row.noise_std_for_target and row.noise_std_for_target.target_rmse == target
        ]
        known = [(need.std, row, need) for row, need in found if need.std is not None]
        worst = max(known, key=lambda item: item[0], default=None)
        rows.append(
            (
                Cell(f"posterior RMSE ≥ {number(target)}"),
                number_cell(median([std for std, _, _ in known]) if known else None, missing="no value"),
                estimate_cell(Estimate(value=worst[0], status=worst[2].status)) if worst else Cell("no value"),
                Cell(short(worst[1].id) if worst else "not applicable"),
                Cell(tally(need.status for _, need in found)),
            )
        )
    rows += [
        (
            Cell(f"revealed fraction ≤ {number(need.max_revealed)}"),
            number_cell(need.median_std),
            estimate_cell(Estimate(value=need.std, status=need.status)),
            Cell(short(need.sample_id)),
            Cell(need.status),
        )
        for need in facts.result.noise_needed
    ]
    return Table(
        id="noise-needed",
        caption="Gaussian noise needed, standard deviation per released entry",
        columns=(
            Column("Target for every sample"),
            Column("Median sample", True),
            Column("Worst sample (over-all need)", True),
            Column("Which sample"),
            Column("Status of the samples"),
        ),
        rows=tuple(rows),
    )


def noise_figure(facts: Facts) -> Figure:
    """Mean and largest revealed fraction over the noise's standard deviation."""
    points = sorted(facts.result.noise_curve, key=lambda point: point.std)
    positive = [point for point in points if point.std > 0]
    vertical = []
    if facts.noise_std:
        label = "audited" if facts.result.release.defended else "reference"
        vertical.append(Reference(facts.noise_std, f"{label}: {number(facts.noise_std)}"))
    needed = Recommendation(facts).std
    if needed is not None:
        vertical.append(Reference(float(needed), f"needed: {given(float(needed))}"))
    return Figure(
        id="noise",
        title=_curve_finding(points, facts.result.settings.thresholds.medium, _who(facts)),
        alt=(
            f"Mean and largest revealed fraction at {count(len(points), 'noise level')} from "
            f"{number(points[0].std)} to {number(points[-1].std)}; both fall as noise grows."
        ),
        plot=CurvePlot(
            "noise std per released entry (log scale)",
            "revealed fraction",
            tuple(point.std for point in positive),
            (
                Curve("most exposed sample", tuple(point.revealed_fraction_max for point in positive)),
                Curve("mean of the samples", tuple(point.revealed_fraction_mean for point in positive)),
            ),
            thresholds(facts),
            tuple(vertical),
            (0.0, 1.0),
        ),
        table=_curve_table(points),
        caption="If the release carried Gaussian noise of this standard deviation instead of its own."
        + (_ON_INTERVALS if any(point.revealed_fraction_mean_low is not None for point in points) else ""),
    )


def _who(facts: Facts) -> str:
    """Whom the noise curve speaks for: samples without a value are not in it."""
    known = facts.known("revealed_fraction")
    return "every sample" if known == facts.num_samples else f"the {count(known, 'sample')} with a value"


def _curve_finding(points: list[NoiseCurvePoint], medium: float, who: str) -> str:
    enough = next((point for point in points if point.revealed_fraction_max < medium), None)
    if enough is None:
        worst = points[-1]
        return (
            f"Even noise of {number(worst.std)} leaves the most exposed sample at a revealed fraction of "
            f"{number(worst.revealed_fraction_max)}"
        )
    return (
        f"Noise of {number(enough.std)} brings {who} below the medium level: "
        f"largest revealed fraction {number(enough.revealed_fraction_max)}"
    )


def _curve_table(points: list[NoiseCurvePoint]) -> Table:
    columns = (
        Column("Noise", True, "std per entry"),
        Column("Revealed fraction, mean", True),
        Column("Revealed fraction, largest", True),
        Column("Posterior RMSE, mean", True),
        Column("Posterior RMSE, smallest", True),
    )
    rows = tuple(
        (
            number_cell(point.std),
            replace(
                number_cell(point.revealed_fraction_mean),
                detail=interval(point.revealed_fraction_mean_low, point.revealed_fraction_mean_high),
            ),
            number_cell(point.revealed_fraction_max),
            number_cell(point.posterior_rmse_mean),
            number_cell(point.posterior_rmse_min),
        )
        for point in points
    )
    note = "Computed from the samples whose revealed fraction has a value."
    return Table(
        "noise-curve", "What each noise level would leave", columns, rows, note=note, sortable=True, layout="halved"
    )


def _cost_text(facts: Facts, std: float) -> str:
    entries = facts.result.checkpoint.num_parameters
    norm = std * math.sqrt(entries)
    text = f"Noise of {number(std)} on {entries:,} entries has a norm of about {number(norm)} per upload"
    norms = facts.values("gradient_norm")
    if norms:
        share = norm / median(norms) if median(norms) > 0 else math.inf
        if math.isfinite(share):
            ratio = f"{number(share)} times" if share >= 1 else f"{percent(share)} of"
            text += f", {ratio} the median sample's gradient ({number(median(norms))})"
    return (
        f"{text}. Averaging over many samples and clients shrinks the noise relative to the signal; the effect on "
        "accuracy was not measured here and has to be checked by training."
    )
