"""Section 5: how much noise brings the leak down, and the configuration to copy.

The release that would protect is the audited pipeline with as much noise as its samples need; a command audits it.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Callout, Cell, Figure, Paragraph, Section, Snippet
from riskaudit.document.cells import ends_cell, estimate_cell, tally
from riskaudit.document.plots import Curve, CurvePlot, Reference
from riskaudit.formatting import ascii_number, count, given, number, percent, sentence, short
from riskaudit.release.noise import Noise
from riskaudit.report.sections.leaks import thresholds
from riskaudit.report.sections.schemes import Scheme, attacker_words
from riskaudit.results import Estimate, NoiseCurvePoint, NoiseNeed
from riskaudit.results.estimates import EstimateColumn
from riskaudit.results.facts import Facts
from riskaudit.results.verdicts import DROWNED

_ON_INTERVALS = (
    " The numbers rest on intervals: the largest ones are upper ends, the means estimates whose own interval the table "
    "gives."
)


@dataclass(frozen=True)
class Recommendation:
    """What an audit's numbers recommend; None where they recommend nothing."""

    facts: Facts

    @cached_property
    def _limit(self) -> float:
        """The revealed fraction to stay within: the policy's limits, else the verdict "high"."""
        set_by_policy = self.facts.result.policy.limits if self.facts.result.policy else {}
        limits = [set_by_policy[name] for name in ("max_revealed",) if name in set_by_policy]
        if "min_rmse" in set_by_policy:
            limits.append(1 - (set_by_policy["min_rmse"] / self.facts.result.prior.std) ** 2)
        return min(limits, default=self.facts.result.settings.thresholds.high)

    @cached_property
    def obstacle(self) -> str | None:
        """Why no noise is recommended, and what to do; None where nothing speaks against it."""
        if self.check_obstacle is not None:
            return f"{sentence(self.check_obstacle)} Its page in docs/checks says what to do besides noise."
        return self.drowned

    @cached_property
    def drowned(self) -> str | None:
        """What to say where the noise that is needed would leave nothing of any upload."""
        norms = [row.proxies["gradient_norm"].value for row in self.facts.result.samples if row.status != "failed"]
        largest = max((norm for norm in norms if norm is not None), default=math.inf)
        if not self._need > DROWNED * largest:
            return None
        times = f"{number(self._need / largest)} times" if largest > 0 else "far more than"
        audited = Scheme(self.facts).spec
        if audited is not None and audited.training is not None and audited.training.optimizer == "adam":
            cause, remedy = "entries near 0 that Adam magnifies, a saturated network", "use SGD"
        else:
            cause, remedy = "a saturated network, intervals that are still wide", "give the audit more time"
        return (
            f"As far as the numbers go, noise of {number(self._need)} per entry would be needed, {times} the norm "
            "of the whole upload, which leaves nothing of it. At so much the derivative, from which the need is read, "
            f"says nothing ({cause}): send nothing, or {remedy}, larger batches or clipping."
        )

    @cached_property
    def check_obstacle(self) -> str | None:
        """Why no noise is known to satisfy the policy's forbidden checks; None where there is some."""
        for name in self._forbidden:
            found = [finding for finding in self.facts.result.checks if finding.id == name]
            if not found:
                return f"the forbidden check {name} was not run"
            if any(finding.status == "failed" for finding in found):
                return f"the forbidden check {name} could not be run on everything that leaves"
            if any(finding.status == "leak" and finding.clear_from_std is None for finding in found):
                return f"no noise is known under which the forbidden check {name} finds nothing"
        return None

    @property
    def _forbidden(self) -> list[str]:
        policy = self.facts.result.policy
        return [] if policy is None else policy.forbid_checks

    @cached_property
    def checks_std(self) -> float:
        """Noise std under which the policy's forbidden checks find nothing, as far as they leave one at all."""
        found = [finding for finding in self.facts.result.checks if finding.id in self._forbidden]
        return max((finding.clear_from_std or 0.0 for finding in found), default=0.0)

    @cached_property
    def within_limit(self) -> NoiseNeed | None:
        """The least noise that keeps every sample within the limit."""
        within = [need for need in self.facts.result.noise_needed if need.max_revealed <= self._limit * (1 + 1e-9)]
        return min(within, key=lambda need: need.std, default=None)

    @cached_property
    def _need(self) -> float:
        """Noise std for the target and the limit; 0 where none is known or needed."""
        if self.facts.result.noise_needed and self.within_limit is None:
            return 0.0  # no noise of this kind meets the limit
        within = 0.0 if self.within_limit is None else self.within_limit.std
        return max([*self.facts.noise_needed, within], default=0.0)

    @cached_property
    def std(self) -> str | None:
        """Noise std that brings every sample with a known need to the target and within the limit, rounded up.

        Under it the policy's forbidden checks find nothing either.
        """
        if self.obstacle is not None:
            return None
        need = self._need
        return ascii_number(max(need, self.checks_std * (1 + 1e-6))) if need > 0 else None

    @cached_property
    def purpose(self) -> str:
        """What the recommended noise is the least for."""
        target, within, parts = self.facts.target_rmse, self.within_limit, list[str]()
        if self.facts.noise_needed and target is not None:
            parts.append(f"leaves {attacker_words(self.facts)} an RMSE of at least {number(target)}")
        if within is not None:
            whose = "the limit given" if self._has_limit else "the level above which this report says high"
            parts.append(f"reveals at most {percent(within.max_revealed)} of the input, {whose},")
        if self.checks_std > 0:
            parts.append("lets the forbidden checks find nothing")
        what = " and ".join(parts).removesuffix(",")
        return f"for every sample with a known need {what}"

    @property
    def is_called_for(self) -> bool:
        """Whether some sample is exposed as it is."""
        result = self.facts.result
        exceeded = result.policy is not None and result.policy.decision == "block"
        return exceeded or not result.release.defended or self.facts.verdicts["high"] > 0

    @property
    def _has_limit(self) -> bool:
        limits = self.facts.result.policy.limits if self.facts.result.policy else {}
        return "max_revealed" in limits or "min_rmse" in limits

    @cached_property
    def release(self) -> str | None:
        """The audited pipeline with the recommended noise in place of its own, where it can be read."""
        audited = Scheme(self.facts).spec
        if self.std is None or audited is None:
            return None
        return str(replace(audited, noise=Noise("gaussian", float(self.std)))).removeprefix("gradient,")

    @cached_property
    def _command_words(self) -> list[str]:
        """The command of this audit; that of a scan where it isn't known or no shell would read it."""
        if self.facts.result.command is not None:
            with contextlib.suppress(ValueError):
                return shlex.split(self.facts.result.command)
        return ["riskaudit", "scan", self.facts.result.checkpoint.name, "--data", self.facts.result.data.name]

    @cached_property
    def option(self) -> tuple[str, str] | None:
        """What asks for the recommended release: verify takes a noise level beside the release."""
        release, noise_std = self.release, self.std
        if release is None or noise_std is None:
            return None
        return ("--noise-std", noise_std) if "verify" in self._command_words[1:2] else ("--release", release)

    @cached_property
    def command(self) -> str | None:
        """The command of this audit with the recommended release, and no other noise."""
        option = self.option
        if option is None:
            return None
        # Studies of the release as it was don't belong into the audit of another.
        words = _without_option(_without_option(self._command_words, option[0]), "--add-to")
        return shlex.join([*words, *option])


def _without_option(words: list[str], option: str) -> list[str]:
    return [
        word
        for position, word in enumerate(words)
        if not (word == option or word.startswith(f"{option}=") or (position > 0 and words[position - 1] == option))
    ]


def protect_section(facts: Facts) -> Section:
    """Noise needed per target, the noise curve, a snippet, and the cost."""
    recommended = Recommendation(facts)
    blocks: list[Block] = [_need_paragraph(recommended), *_check_paragraphs(recommended)]
    if recommended.drowned is not None:
        blocks.append(Callout("No noise is recommended", (recommended.drowned,), "high"))
    if any(row.noise_std_for_target for row in facts.result.samples):
        fractions = [
            _Need(
                f"revealed fraction ≤ {number(need.max_revealed)}",
                need.median_std,
                Estimate(value=need.std, status=need.status),
                need.sample_id,
                need.status,
                decides=need == recommended.within_limit,
            )
            for need in facts.result.noise_needed
        ]
        blocks.append(
            tables.table(
                "noise-needed",
                "Gaussian noise needed, standard deviation per released entry",
                [*_needs(facts), *fractions],
                _NEED_COLUMNS,
            )
        )
    if facts.result.noise_curve:
        blocks.append(noise_figure(facts))
    else:
        blocks.append(Callout("Noise curve: not assessed", ("This audit holds no noise curve.",), "unknown"))
    if recommended.release is not None and recommended.command is not None and recommended.std is not None:
        blocks += [
            Snippet("Audit the recommended release before you adopt it", recommended.command, brief=True),
            Snippet(
                "The same in pyproject.toml",
                "\n".join(("[tool.riskaudit]", *_configuration(facts, recommended.release))),
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
            f"Smaller uploads (pruning), clipping, {'more samples to an upload, ' * facts.is_joint}larger batches that "
            "are summed before anyone sees them (secure aggregation), or leaving out the most exposed samples. This "
            "audit puts no number on these; run it again with the changed release.",
            lead="Alternatives.",
        )
    )
    return Section("what-would-protect", "What would protect", tuple(blocks))


def _configuration(facts: Facts, recommended: str) -> list[str]:
    """Lines of a configuration that ask for the recommended release, its uploads and who decides."""
    release = facts.result.release
    lines = [f"release = {json.dumps(recommended)}", f"seed = {facts.result.settings.seed}"]
    if facts.is_joint:
        lines += [f"attacker = {json.dumps(facts.attacker)}"]
        lines += [f"batch_norm = {json.dumps(release.batch_norm)}"] if release.batch_norm else []
    return lines


def _need_paragraph(recommended: Recommendation) -> Paragraph:
    """The one number to use where there is one; else what the target alone needs."""
    facts = recommended.facts
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
    have, most = "no noise", max(needed) if recommended.std is None else float(recommended.std)
    if release.defended and release.noise is not None and now:
        ratio = most / now
        have = f"{release.noise.law} noise of {given(now)}, " + (
            "which is enough for every sample with a known need" if ratio <= 1 else f"{number(ratio)} times too little"
        )
    if recommended.std is not None:
        return Paragraph(
            f"Gaussian noise of standard deviation {number(most)} per released entry: the least, rounded up, that "
            f"{recommended.purpose}. This is the number to use; the others of this section say what single targets "
            f"need and what other noise leaves. The release has {have}.{gap}",
            lead="Recommended noise.",
            brief=True,
        )
    return Paragraph(
        f"To leave {attacker_words(facts)} an RMSE of at least {number(target)}, Gaussian noise of standard deviation "
        f"{number(median(needed))} per released entry suffices for the median sample and {number(max(needed))} for the "
        f"worst; none is recommended. The release has {have}.{gap}",
        lead="Noise needed.",
        brief=True,
    )


def _check_paragraphs(recommended: Recommendation) -> list[Block]:
    """What the policy's forbidden checks need, which no limit on average makes up for; nothing where it has none."""
    policy = recommended.facts.result.policy
    if policy is None or not policy.forbid_checks:
        return []
    if recommended.check_obstacle is not None:
        obstacle = sentence(recommended.check_obstacle)
        text = f"{obstacle} No release is recommended: the page on the check says what to do."
    elif recommended.checks_std > 0:
        text = (
            f"Gaussian noise of standard deviation {number(recommended.checks_std)} per released entry is needed so "
            f"that {', '.join(policy.forbid_checks)} find nothing."
        )
    else:
        text = f"Any noise will do, or none is needed, for {', '.join(policy.forbid_checks)} to find nothing."
    return [Paragraph(text, lead="Forbidden checks.", brief=True)]


@dataclass(frozen=True)
class _Need:
    target: str
    median_std: float | None
    worst: Estimate | None
    sample: str | None
    status: str
    decides: bool = True


def _needs(facts: Facts) -> list[_Need]:
    by_target = defaultdict[float, EstimateColumn](EstimateColumn)
    for place, row in enumerate(facts.result.samples):
        if (need := row.noise_std_for_target) is not None:
            by_target[need.target_rmse].append(place, Estimate(value=need.std, status=need.status))
    needs = []
    for target, samples in sorted(by_target.items()):
        stds = [(each.value, place, each) for place, each in samples.by_place() if each.value is not None]
        worst = max(stds, key=lambda item: item[0], default=None)
        needs.append(
            _Need(
                f"posterior error ≥ {number(target)}",
                median(std for std, _, _ in stds) if stds else None,
                Estimate(value=worst[0], status=worst[2].status) if worst else None,
                facts.result.samples[worst[1]].id if worst else None,
                tally(each.status for each in samples),
            )
        )
    return needs


_NEED_COLUMNS: tables.Columns[_Need] = (
    tables.text("Target for every sample", lambda need: need.target),
    tables.number("Median sample", lambda need: need.median_std, missing="no value"),
    tables.column(
        "Worst sample (over-all need)",
        lambda need: estimate_cell(need.worst) if need.worst is not None else Cell("no value"),
    ),
    tables.text("Which sample", lambda need: "not applicable" if need.sample is None else short(need.sample)),
    tables.text("Status of the samples", lambda need: need.status),
    tables.text("In the recommendation", lambda need: "yes" if need.decides else "no, to compare"),
)


def noise_figure(facts: Facts) -> Figure:
    """Mean and largest revealed fraction over the noise's standard deviation."""
    points = sorted(facts.result.noise_curve, key=lambda point: point.std)
    positive = [point for point in points if point.std > 0]
    vertical = []
    if facts.noise_std:
        label = "audited" if facts.result.release.defended else "reference"
        vertical.append(Reference(facts.noise_std, f"{label}: {number(facts.noise_std)}"))
    recommended = Recommendation(facts)
    if recommended.std is not None:
        vertical.append(Reference(float(recommended.std), f"recommended: {number(float(recommended.std))}"))
    # Samples without a value are not in the noise curve.
    num_known = facts.num_known(facts.headline)
    return Figure(
        id="noise",
        title=_curve_finding(
            points,
            recommended,
            "every sample" if num_known == facts.num_samples else f"the {count(num_known, 'sample')} with a value",
        ),
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
        table=tables.table(
            "noise-curve",
            "What each noise level would leave",
            points,
            _CURVE_COLUMNS,
            note="Computed from the samples whose revealed fraction has a value.",
            sortable=True,
            layout="halved",
        ),
        caption="If the release carried Gaussian noise of this standard deviation instead of its own."
        + (f" Numbers are those of {attacker_words(facts)}." if facts.is_joint else "")
        + (_ON_INTERVALS if any(point.revealed_fraction_mean_low is not None for point in points) else ""),
    )


def _curve_finding(points: list[NoiseCurvePoint], recommended: Recommendation, who: str) -> str:
    within = recommended.within_limit
    if recommended.std is not None and within is not None:
        return (
            f"The recommended noise of {number(float(recommended.std))} keeps {who} at a revealed fraction of "
            f"{number(within.max_revealed)} at most"
        )
    medium = recommended.facts.result.settings.thresholds.medium
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


_CURVE_COLUMNS: tables.Columns[NoiseCurvePoint] = (
    tables.number("Noise", lambda point: point.std, "std per entry"),
    tables.column(
        "Revealed fraction, mean",
        lambda point: ends_cell(
            point.revealed_fraction_mean, point.revealed_fraction_mean_low, point.revealed_fraction_mean_high
        ),
    ),
    tables.number("Revealed fraction, largest", lambda point: point.revealed_fraction_max),
    tables.number("Posterior error, mean", lambda point: point.posterior_rmse_mean),
    tables.number("Posterior error, smallest", lambda point: point.posterior_rmse_min),
)


def _cost_text(facts: Facts, std: float) -> str:
    entries = facts.result.release.num_entries or facts.result.checkpoint.num_parameters
    norm = std * math.sqrt(entries)
    text = f"Noise of {number(std)} on {entries:,} entries has a norm of about {number(norm)} per upload"
    norms = facts.values("gradient_norm")
    if norms:
        share = norm / median(norms) if median(norms) > 0 else math.inf
        if math.isfinite(share):
            ratio = f"{number(share)} times" if share >= 1 else f"{percent(share)} of"
            what = "upload" if facts.is_joint else "sample's gradient"
            text += f", {ratio} the median {what} ({number(median(norms))})"
    averaged = "many clients" if facts.is_joint else "many samples and clients"
    return (
        f"{text}. Averaging over {averaged} shrinks the noise relative to the signal; the effect on "
        "accuracy was not measured here and has to be checked by training."
    )
