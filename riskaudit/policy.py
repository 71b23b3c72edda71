"""Limits on what a release may reveal, and the decision that follows: a pure function of the numbers.

Fails closed: a sample without a usable number is over every limit, and so is an undefended release,
whose reference noise only ranks samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass
from typing_extensions import override

from riskaudit.errors import SettingsError
from riskaudit.files import read_toml
from riskaudit.formatting import count
from riskaudit.results import RELIABLE, Attacker, AuditResult, Estimate, PolicyOutcome, SampleRow
from riskaudit.results.checks import CHECK_IDS, CheckFinding
from riskaudit.results.verdicts import attacker_of, error_of, headline_of, most_revealed, tokens_of
from riskaudit.settings import CHECKED, Positive, Settings, Share, fields_of

if TYPE_CHECKING:
    from typing import Self

# Fields that bound what is revealed; the others say what is done about it.
LIMITS = ("max_revealed", "min_rmse", "max_class_gap", "max_total_revealed")
# What samples over a limit do, or may do where one end alone of their intervals is over it.
_EXCEEDED = {
    "max_revealed": ("", "reveal more than {:g} of the input"),
    "min_rmse": ("can ", "be reconstructed to an RMSE below {:g}"),
    "max_total_revealed": ("would ", "reveal more than {:g} of the input over all rounds"),
}
# Which number of a sample each of them bounds.
_LIMITED = {"max_revealed": "revealed", "min_rmse": "rmse", "max_total_revealed": "total_revealed"}
# How reasons by forbidden checks begin.
FORBIDDEN = "the forbidden check"
POLICY_TABLE = "policy"


@dataclass(frozen=True)
class Range:
    """An interval in which a number lies for certain, or with the confidence asked for."""

    low: float
    high: float


@dataclass(frozen=True)
class Exposure:
    """What is known of one sample; None where nothing may be claimed.

    Attributes:
        id: of the sample.
        group: its class, for the gap between classes.
        revealed: of its input, 0 to 1.
        rmse: posterior error, data units per input coordinate.
        total_revealed: by all uploads so far, this one included.
        informed_revealed: to who knows all other samples of an upload, where ``revealed`` and ``rmse`` are those of who
            knows none.
        informed_rmse: likewise.
    """

    id: str
    group: str | None = None
    revealed: Range | None = None
    rmse: Range | None = None
    total_revealed: Range | None = None
    informed_revealed: Range | None = None
    informed_rmse: Range | None = None


@dataclass(frozen=True)
class Judgement:
    """Reasons to refuse, empty where there are none, and the ids they are about.

    Attributes:
        reasons: one sentence each.
        exceeded: ids of samples over a limit, in the samples' order.
        unassessed: ids of samples without a number that a limit needs.
        notes: what a reader should know although it refuses nothing.
    """

    reasons: list[str]
    exceeded: list[str]
    unassessed: list[str]
    notes: list[str] = field(default_factory=list)


@checked_dataclass(frozen=True, config=CHECKED)
class Policy(Settings):
    """Limits, and what the guard does about an upload that breaks one.

    Attributes:
        max_revealed: largest revealed_fraction of any sample, 0 to 1.
        min_rmse: smallest posterior_rmse of any sample, data units per input coordinate.
        max_class_gap: largest difference between two classes' mean revealed_fraction, 0 to 1.
        max_total_revealed: largest revealed_fraction of any sample over all rounds of a ledger, 0 to 1.
        attacker: whose numbers limits go by where several samples leave together: "informed", who knows all other
            samples, or "outsider", who knows none; None for the audit's own choice, and the informed in a guard. What
            adds up over rounds is the informed attacker's in any case.
        forbid_checks: ids of exact leak checks (see ``riskaudit list checks``) that may find nothing, whatever the
            proxies say of the average.
        max_unassessed: largest share of samples that may go without a number, 0 to 1.
        on_violation: "block" withholds the upload, "sanitise" changes it until it keeps the limits, "warn" lets it
            pass.
        sanitiser: "noise" adds the least Gaussian noise that is sure to do; "clip" first clips every sample's
            gradient to ``clip_norm``; "drop" leaves out the samples over a limit.
        clip_norm: of "clip".
        on_failure: what to do where no decision could be reached: "block", or "warn" to let the upload pass.
        unknown_layers: what to do about a trainable layer that the structured Jacobian doesn't know: "block", or
            "differentiate" the whole model automatically, which is as exact and whose cost nothing bounds.
        unproven_step: what to do about an update whose noise would hide several local steps, and that nobody vouches
            for (``local_steps`` of the guard), and about a recorded round whose noise would hide that a clip or
            another step of the release was left out: "block", or "accept" it as what it should be.
        sparse_codes: what to do about inputs of two values, one of them rare, as one-hot codes have, of which the
            numbers say too little: "block", or "accept" them.
        buffers: what to do about entries of the state dict that aren't trained (running statistics of batch norm) and
            would leave changed: "block", or "reset" them to what was received, as sanitising does as well.
        inspect_received: whether the guard looks for signs that a received model was changed to leak, before anything
            that was trained on it is reviewed; a flagged one, and one that can't be inspected, withholds, whatever
            ``on_violation`` and ``on_failure`` say.
        budget_seconds: time that one review may take; None for as long as it takes.
        max_gradients: what one review may cost, in gradients of the batch; None for no bound.
        max_trainings: what the review of samples that leave together may cost, as after local training, in trainings
            like theirs; None for no bound.
        confidence: that all of a review's numbers hold; intervals that hold less often than every other time are no
            bounds.

    Raises:
        SettingsError: a number that is none, isn't finite or out of range, or an unknown choice.
    """

    max_revealed: Share | None = None
    min_rmse: Annotated[float, Field(ge=0)] | None = None
    max_class_gap: Share | None = None
    max_total_revealed: Share | None = None
    attacker: Literal["informed", "outsider"] | None = None
    forbid_checks: tuple[str, ...] = ()
    max_unassessed: Share = 0.0
    on_violation: Literal["block", "sanitise", "warn"] = "block"
    sanitiser: Literal["noise", "clip", "drop"] = "noise"
    clip_norm: Positive | None = None
    on_failure: Literal["block", "warn"] = "block"
    unknown_layers: Literal["block", "differentiate"] = "block"
    unproven_step: Literal["block", "accept"] = "block"
    sparse_codes: Literal["block", "accept"] = "block"
    buffers: Literal["block", "reset"] = "block"
    inspect_received: bool = False
    budget_seconds: Positive | None = None
    max_gradients: Positive | None = 60.0
    max_trainings: Positive | None = 12.0
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.99

    @classmethod
    @override
    def spelt(cls, name: str) -> str:
        # As in a policy file, where most policies stand.
        return name

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.sanitiser == "clip") != (self.clip_norm is not None):
            raise SettingsError('expected clip_norm together with sanitiser = "clip"; give both or neither')
        for name in self.forbid_checks:
            if name not in CHECK_IDS:
                raise SettingsError(f"expected forbid_checks among {', '.join(CHECK_IDS)}, found {name!r}")
        return self

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Policy:
        """From a configuration table.

        Raises:
            SettingsError: an unknown entry, or one that isn't of its kind.
        """
        for name, value in values.items():
            if name not in fields_of(cls):
                raise SettingsError(f"expected policy entries {', '.join(fields_of(cls))}, found {name!r}")
            if value is None:
                raise SettingsError(f"expected a value for {name}, found None")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> Policy:
        """From a TOML file: its [policy] or [tool.riskaudit.policy] table, else the whole of it.

        Raises:
            SettingsError: the file can't be read, or doesn't hold a policy.
        """
        return cls.from_mapping(policy_table(Path(path), required=True) or {})

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set."""
        values = {name: getattr(self, name) for name in LIMITS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def refuses(self) -> bool:
        """Whether anything is held against the policy at all."""
        return bool(self.limits or self.forbid_checks)

    @property
    def resets_buffers(self) -> bool:
        """Whether entries that aren't trained leave as they were received, where they would leave changed."""
        return self.buffers == "reset" or self.on_violation == "sanitise"

    def judge(self, exposures: Sequence[Exposure]) -> Judgement:
        """Hold samples against the limits; of every interval the cautious end counts."""
        total, reasons, notes = len(exposures), list[str](), list[str]()
        unassessed = [exposure.id for exposure in exposures if not self._assessed(exposure)]
        over = {limit: [exposure.id for exposure in exposures if self.exceeds(limit, exposure)] for limit in _EXCEEDED}
        if not total:
            reasons.append("no sample was audited")
        for limit, ids in over.items():
            if ids:
                certain = sum(self.exceeds(limit, exposure, certainly=True) for exposure in exposures)
                reasons.append(_over(limit, self.limits[limit], certain, len(ids), total))
        if self.max_class_gap is not None:
            gap = class_gap(exposures)
            if len({exposure.group for exposure in exposures} - {None}) == 1:
                note = "max_class_gap was not compared, since all samples are of one class"
                # Where nothing else is limited, nothing was held against the policy.
                (notes if len(self.limits) > 1 else reasons).append(note)
            # NaN must fail the check.
            if gap is not None and not gap <= self.max_class_gap:
                reasons.append(f"classes may differ by {gap:.3g} in what they reveal, more than {self.max_class_gap:g}")
        if len(unassessed) > self.max_unassessed * total:
            reasons.append(f"{len(unassessed)} of {count(total, 'sample')} could not be assessed")
        exceeded = {*unassessed, *(identifier for ids in over.values() for identifier in ids)}
        ids = [exposure.id for exposure in exposures if exposure.id in exceeded]
        return Judgement(reasons, ids, unassessed, notes)

    def exceeds(self, limit: str, exposure: Exposure, *, certainly: bool = False) -> bool:
        """Whether a sample may be over ``limit``, or is with its whole interval; False where nothing is known of it."""
        interval = getattr(exposure, _LIMITED[limit]) if limit in _LIMITED else None
        bound = getattr(self, limit)
        if bound is None or interval is None:
            return False
        # NaN must fail the checks.
        if limit == "min_rmse":
            return bool(interval.high < bound if certainly else not interval.low >= bound)
        return bool(interval.low > bound if certainly else not interval.high <= bound)

    def undecided(self, exposure: Exposure) -> bool:
        """Whether a tighter interval could still bring a sample within every limit."""
        over = [limit for limit in ("max_revealed", "min_rmse") if self.exceeds(limit, exposure)]
        return bool(over) and not self.exceeds(over[0], exposure, certainly=True)

    def decide(self, result: AuditResult, source: str = "policy") -> PolicyOutcome:
        """Hold an audit against the limits; ``source`` says where they came from.

        An audit is of one upload: ``max_total_revealed`` is for the guard, who counts them.
        """
        limits = {name: value for name, value in self.limits.items() if name != "max_total_revealed"}
        if not limits and not self.forbid_checks:
            return PolicyOutcome(decision="warn", reasons=["the policy sets no limit"], limits={}, source=source)
        attacker = attacker_of(result.release)
        attacker = attacker and (self.attacker or attacker)
        judgement = replace(self, max_total_revealed=None).judge(
            [_exposure(row, result.prior.std, attacker) for row in result.samples]
        )
        forbidden, leaking = self.forbidden(result.checks)
        reasons = [*forbidden, *judgement.reasons]
        if result.data.num_unaudited:
            reasons = [
                f"{result.data.num_unaudited} of {count(len(result.samples), 'sample')} were not audited",
                *reasons,
            ]
        if limits and not result.release.defended:
            # Checks need no noise to be exact; limits do.
            reasons = ["the release is undefended: assume full disclosure", *reasons]
        elif limits:
            accepted = result.data.doubt if self.sparse_codes == "accept" else None
            reasons = [*reasons, *(doubt for doubt in result.doubts if doubt != accepted)]
        total = len(result.samples)
        return PolicyOutcome(
            decision="block" if reasons else "allow",
            reasons=[*(reasons or [_within(total, judgement.unassessed)]), *judgement.notes, *held_against(attacker)],
            limits=limits,
            source=source,
            exceeded=list(dict.fromkeys([*leaking, *judgement.exceeded])),
            max_unassessed=self.max_unassessed,
            forbid_checks=list(self.forbid_checks),
        )

    def forbidden(self, findings: Sequence[CheckFinding]) -> tuple[list[str], list[str]]:
        """Reasons to refuse by forbidden checks, one sentence each, and ids of the samples that they are about.

        A check that wasn't run, or failed, is no clearance.
        """
        reasons, leaking = list[str](), list[str]()
        for name in self.forbid_checks:
            of_check = [finding for finding in findings if finding.id == name]
            leaks = [finding for finding in of_check if finding.status == "leak"]
            ids = list(dict.fromkeys(each for finding in leaks for each in finding.sample_ids))
            if leaks:
                reasons.append(f"{FORBIDDEN} {name} says leak of {count(len(ids), 'sample')}")
            elif not of_check or any(finding.status == "failed" for finding in of_check):
                reasons.append(f"{FORBIDDEN} {name} could not be run, which is no clearance")
            leaking += ids
        return reasons, list(dict.fromkeys(leaking))

    def _assessed(self, exposure: Exposure) -> bool:
        """Whether every limit has a number to be held against."""
        needed = {
            "max_revealed": exposure.revealed,
            "min_rmse": exposure.rmse,
            "max_class_gap": None if exposure.group is None else exposure.revealed,
            "max_total_revealed": exposure.total_revealed,
        }
        return all(needed[limit] is not None for limit in self.limits)


def class_gap(exposures: Iterable[Exposure]) -> float | None:
    """How far the mean revealed_fraction of two classes may lie apart; None with fewer than two classes.

    A sample of which nothing is known may reveal anything.
    """
    groups: dict[str, list[Range]] = {}
    for exposure in exposures:
        if exposure.group is not None:
            groups.setdefault(exposure.group, []).append(exposure.revealed or Range(0.0, 1.0))
    if len(groups) < 2:
        return None
    lows = {group: sum(revealed.low for revealed in ranges) / len(ranges) for group, ranges in groups.items()}
    highs = {group: sum(revealed.high for revealed in ranges) / len(ranges) for group, ranges in groups.items()}
    return max(highs[first] - lows[second] for first, second in permutations(groups, 2))


def policy_table(path: Path, *, required: bool) -> dict[str, Any] | None:
    """A policy's entries in a file: a [policy] table, [tool.riskaudit.policy], or, if required, the whole file.

    Raises:
        SettingsError: the file can't be read, or holds no limits where they are required.
    """
    content = read_toml(path)
    tool = content.get("tool", {})
    nested = tool.get("riskaudit", {}) if isinstance(tool, dict) else {}
    for table in (content.get(POLICY_TABLE), nested.get(POLICY_TABLE) if isinstance(nested, dict) else None):
        if isinstance(table, dict):
            return table
    if not required:
        return None
    if not content:
        raise SettingsError(f"expected policy limits in {path}, found none; set max_revealed or min_rmse")
    return content


def held_against(attacker: Attacker | None) -> list[str]:
    """Whose numbers were held against the limits, where there are two attackers."""
    if attacker is None:
        return []
    knows = "all other samples" if attacker == "informed" else "none of the samples"
    return [f"limits are held against the numbers of the {attacker} attacker, who knows {knows} of an upload"]


def _over(limit: str, bound: float, certain: int, possible: int, total: int) -> str:
    """How many samples are over a limit: for certain, and as far as their intervals go."""
    auxiliary, what = _EXCEEDED[limit]
    what = what.format(bound)
    if not certain:
        return f"{possible} of {count(total, 'sample')} may {what}"
    others = f", and {possible - certain} more may" if possible > certain else ""
    return f"{certain} of {count(total, 'sample')} {auxiliary}{what}{others}"


def all_within(total: int) -> str:
    """What is said of so many samples of which none is over a limit."""
    return "the sample is within the limits" if total == 1 else f"all {total:,} samples are within the limits"


def _within(total: int, unassessed: Sequence[str]) -> str:
    if not unassessed:
        return all_within(total)
    return f"{total - len(unassessed)} of {count(total, 'sample')} are within the limits, the others were not assessed"


def _exposure(row: SampleRow, prior_std: float, attacker: Attacker | None) -> Exposure:
    """One sample of an audit: as certified, and where there is a calibration, as calibrated, whichever is worse."""
    revealed = _range(row, headline_of(attacker), 0.0, 1.0)
    rmse = _range(row, error_of(attacker), 0.0, math.inf)
    if row.concentration > 1:
        revealed, rmse = concentrated(revealed, row.concentration, prior_std)
    tokens = row.proxies.get(tokens_of(attacker))
    if row.columns:
        revealed, rmse = _of_part(most_revealed(row.columns.values()), revealed, rmse, prior_std)
    if tokens is not None and tokens.status != "not_applicable":
        revealed, rmse = _of_part(tokens.ends[1], revealed, rmse, prior_std)
    group = str(row.target) if isinstance(row.target, int) else None
    return Exposure(id=row.id, group=group, revealed=revealed, rmse=rmse)


def _of_part(
    most: float | None, revealed: Range | None, rmse: Range | None, prior_std: float
) -> tuple[Range | None, Range | None]:
    """The same where the most revealed column of a table, or a text's tokens, count; of an error what that stands for.

    Args:
        most: of the part, at its upper end; None where that isn't known.
        revealed: of the whole.
        rmse: likewise.
        prior_std: of one coordinate.
    """
    if most is None:
        return None, None
    least = prior_std * math.sqrt(max(0.0, 1 - most))
    return (
        None if revealed is None else Range(revealed.low, max(revealed.high, most)),
        None if rmse is None else Range(min(rmse.low, least), rmse.high),
    )


def concentrated(revealed: Range | None, factor: float, prior_std: float) -> tuple[Range | None, Range | None]:
    """Revealed fraction and posterior error as means over the coordinates that a release depends on.

    Args:
        revealed: as a mean over all coordinates.
        factor: number of all coordinates over that of those.
        prior_std: of one coordinate.
    """
    if revealed is None:
        return None, None
    low, high = (min(1.0, factor * end) for end in (revealed.low, revealed.high))
    return Range(low, high), Range(*(prior_std * math.sqrt(max(0.0, 1 - end)) for end in (high, low)))


def _range(row: SampleRow, proxy: str, least: float, most: float) -> Range | None:
    """The hull of what is known of a proxy; a side that is unknown may be anything."""
    certified = row.proxies.get(proxy)
    if certified is None or not certified.assessed:
        return None
    estimates = [certified, row.calibrated.get(proxy)]
    reliable = [estimate for estimate in estimates if estimate is not None and estimate.status in RELIABLE]
    return Range(
        min(_end(estimate, estimate.low, least) for estimate in reliable),
        max(_end(estimate, estimate.high, most) for estimate in reliable),
    )


def _end(estimate: Estimate, end: float | None, extreme: float) -> float:
    """An ``end`` of an interval, else the value; one known from the other side only may be ``extreme``."""
    if end is not None:
        return end
    return extreme if estimate.status == "bracketed" or estimate.value is None else estimate.value
