"""Limits on what a release may reveal, and the decision that follows: a pure function of the numbers.

Fails closed: a sample without a usable number is over every limit, and so is an undefended release,
whose reference noise only ranks samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

from riskaudit.errors import SettingsError
from riskaudit.files import read_toml
from riskaudit.results import RELIABLE, AuditResult, Estimate, PolicyOutcome, SampleRow

Violation = Literal["block", "sanitise", "warn"]
Failure = Literal["block", "warn"]
Sanitiser = Literal["noise", "clip", "drop"]
UnknownLayers = Literal["block", "differentiate"]
UnprovenStep = Literal["block", "accept"]
SparseCodes = Literal["block", "accept"]
_CHOICES = {
    "on_violation": get_args(Violation),
    "on_failure": get_args(Failure),
    "sanitiser": get_args(Sanitiser),
    "unknown_layers": get_args(UnknownLayers),
    "unproven_step": get_args(UnprovenStep),
    "sparse_codes": get_args(SparseCodes),
}
# Fields that bound what is revealed; the others say what is done about it.
LIMITS = ("max_revealed", "min_rmse", "max_class_gap", "max_total_revealed")
POLICY_TABLE = "policy"
_SHARE: tuple[str, Callable[[float], bool]] = ("between 0 and 1", lambda value: 0 <= value <= 1)
_POSITIVE: tuple[str, Callable[[float], bool]] = ("above 0", lambda value: value > 0)
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "max_revealed": _SHARE,
    "max_class_gap": _SHARE,
    "max_total_revealed": _SHARE,
    "max_unassessed": _SHARE,
    "min_rmse": ("of at least 0", lambda value: value >= 0),
    "budget_seconds": _POSITIVE,
    "max_gradients": _POSITIVE,
    "clip_norm": _POSITIVE,
    # Intervals that hold less often than every other time are no bounds.
    "confidence": ("of at least 0.5 and below 1", lambda value: 0.5 <= value < 1),
}


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
    """

    id: str
    group: str | None = None
    revealed: Range | None = None
    rmse: Range | None = None
    total_revealed: Range | None = None


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


@dataclass(frozen=True)
class Policy:
    """Limits, and what the guard does about an upload that breaks one.

    Attributes:
        max_revealed: largest revealed_fraction of any sample, 0 to 1.
        min_rmse: smallest posterior_rmse of any sample, data units per input coordinate.
        max_class_gap: largest difference between two classes' mean revealed_fraction, 0 to 1.
        max_total_revealed: largest revealed_fraction of any sample over all rounds of a ledger, 0 to 1.
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
            for (``local_steps`` of the guard): "block", or "accept" it as the gradient of one step.
        sparse_codes: what to do about inputs of two values, one of them rare, as one-hot codes have, of which the
            numbers say too little: "block", or "accept" them.
        budget_seconds: time that one review may take; None for as long as it takes.
        max_gradients: what one review may cost, in gradients of the batch; None for no bound.
        confidence: that all of a review's numbers hold, at least 0.5 and below 1.

    Raises:
        SettingsError: a number that is none, isn't finite or out of range, or an unknown choice.
    """

    max_revealed: float | None = None
    min_rmse: float | None = None
    max_class_gap: float | None = None
    max_total_revealed: float | None = None
    max_unassessed: float = 0.0
    on_violation: Violation = "block"
    sanitiser: Sanitiser = "noise"
    clip_norm: float | None = None
    on_failure: Failure = "block"
    unknown_layers: UnknownLayers = "block"
    unproven_step: UnprovenStep = "block"
    sparse_codes: SparseCodes = "block"
    budget_seconds: float | None = None
    max_gradients: float | None = 60.0
    confidence: float = 0.99

    def __post_init__(self) -> None:
        for name, (words, allows) in _RANGES.items():
            value = getattr(self, name)
            if value is not None or name in ("max_unassessed", "confidence"):
                check_number(name, value, words, allows)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingsError(f"expected {name} to be one of {', '.join(choices)}, found {getattr(self, name)!r}")
        if (self.sanitiser == "clip") != (self.clip_norm is not None):
            raise SettingsError('expected clip_norm together with sanitiser = "clip"; give both or neither')

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Policy:
        """From a configuration table.

        Raises:
            SettingsError: an unknown entry, or one that isn't of its kind.
        """
        known = [field.name for field in fields(cls)]
        found: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise SettingsError(f"expected policy entries {', '.join(known)}, found {name!r}")
            if name in _CHOICES:
                found[name] = value
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SettingsError(f"expected a number for the policy limit {name}, found {value!r}")
            found[name] = float(value)
        return cls(**found)

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
        found = {name: getattr(self, name) for name in LIMITS}
        return {name: value for name, value in found.items() if value is not None}

    def judge(self, exposures: Sequence[Exposure]) -> Judgement:
        """Hold samples against the limits; of every interval the cautious end counts."""
        total, reasons = len(exposures), []
        unassessed = [one.id for one in exposures if not self._assessed(one)]
        over: dict[str, list[str]] = {name: [] for name in ("max_revealed", "min_rmse", "max_total_revealed")}
        for name, ids in over.items():
            ids += [one.id for one in exposures if self.exceeds(name, one)]
        if not total:
            reasons.append("no sample was audited")
        if over["max_revealed"]:
            reasons.append(
                f"{len(over['max_revealed'])} of {total} samples reveal more than {self.max_revealed:g} of the input"
            )
        if over["min_rmse"]:
            reasons.append(
                f"{len(over['min_rmse'])} of {total} samples can be reconstructed to an RMSE below {self.min_rmse:g}"
            )
        if over["max_total_revealed"]:
            reasons.append(
                f"{len(over['max_total_revealed'])} of {total} samples would reveal more than "
                f"{self.max_total_revealed:g} of the input over all rounds"
            )
        notes: list[str] = []
        gap = class_gap(exposures) if self.max_class_gap is not None else None
        if self.max_class_gap is not None and len({one.group for one in exposures} - {None}) == 1:
            words = f"max_class_gap was not compared, since all {total} samples are of one class"
            # Where nothing else is limited, nothing was held against the policy.
            (notes if len(self.limits) > 1 else reasons).append(words)
        if gap is not None and self.max_class_gap is not None and not gap <= self.max_class_gap:
            reasons.append(f"classes may differ by {gap:.3g} in what they reveal, more than {self.max_class_gap:g}")
        if len(unassessed) > self.max_unassessed * total:
            reasons.append(f"{len(unassessed)} of {total} samples could not be assessed")
        exceeded = {*unassessed, *(each for ids in over.values() for each in ids)}
        return Judgement(reasons, [one.id for one in exposures if one.id in exceeded], unassessed, notes)

    def exceeds(self, limit: str, one: Exposure) -> bool:
        """Whether a sample may be over ``limit``; False where nothing is known of it."""
        if limit == "min_rmse":
            return self.min_rmse is not None and one.rmse is not None and not one.rmse.low >= self.min_rmse
        found = one.revealed if limit == "max_revealed" else one.total_revealed
        bound = self.max_revealed if limit == "max_revealed" else self.max_total_revealed
        # Not "above": what isn't a number isn't within the limit either.
        return bound is not None and found is not None and not found.high <= bound

    def undecided(self, one: Exposure) -> bool:
        """Whether a tighter interval could still bring a sample within every limit."""
        if self.exceeds("max_revealed", one) and one.revealed is not None:
            return one.revealed.low <= self.limits["max_revealed"]
        if self.exceeds("min_rmse", one) and one.rmse is not None:
            return one.rmse.high >= self.limits["min_rmse"]
        return False

    def decide(self, result: AuditResult, source: str = "policy") -> PolicyOutcome:
        """Hold an audit against the limits; ``source`` says where they came from.

        An audit is of one upload: ``max_total_revealed`` is for the guard, who counts them.
        """
        limits = {name: value for name, value in self.limits.items() if name != "max_total_revealed"}
        if not limits:
            return PolicyOutcome(decision="warn", reasons=["the policy sets no limit"], limits={}, source=source)
        judgement = replace(self, max_total_revealed=None).judge(
            [_exposure(row, result.prior.std) for row in result.samples]
        )
        reasons = judgement.reasons
        if not result.release.defended:
            reasons = ["the release is undefended: assume full disclosure", *reasons]
        else:
            accepted = result.data.doubt if self.sparse_codes == "accept" else None
            reasons = [*reasons, *(doubt for doubt in result.doubts if doubt != accepted)]
        total = len(result.samples)
        return PolicyOutcome(
            decision="block" if reasons else "allow",
            reasons=[*(reasons or [_within(total, judgement.unassessed)]), *judgement.notes],
            limits=limits,
            source=source,
            exceeded=judgement.exceeded,
            max_unassessed=self.max_unassessed,
        )

    def _assessed(self, one: Exposure) -> bool:
        """Whether every limit has a number to be held against."""
        needed = {
            "max_revealed": one.revealed,
            "min_rmse": one.rmse,
            "max_class_gap": None if one.group is None else one.revealed,
            "max_total_revealed": one.total_revealed,
        }
        return all(needed[limit] is not None for limit in self.limits)


def is_number(value: object) -> bool:
    """Whether a setting is a finite real number; truth values, texts and tensors are none."""
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # of an integer beyond all floats
        return False


def check_number(name: str, value: Any, words: str, allows: Callable[[float], bool]) -> None:
    """Refuse a setting that isn't a finite number, or out of its range.

    Args:
        name: of the setting.
        value: that was given.
        words: the range, as in "expected max_revealed between 0 and 1".
        allows: whether a number is in the range.

    Raises:
        SettingsError: with what was expected and found.
    """
    if not is_number(value):
        raise SettingsError(f"expected {name} {words}, found {value!r}, which is no finite number")
    if not allows(value):
        raise SettingsError(f"expected {name} {words}, found {value}")


def class_gap(exposures: Iterable[Exposure]) -> float | None:
    """How far the mean revealed_fraction of two classes may lie apart; None with fewer than two classes.

    A sample of which nothing is known may reveal anything.
    """
    groups: dict[str, list[Range]] = {}
    for one in exposures:
        if one.group is not None:
            groups.setdefault(one.group, []).append(one.revealed or Range(0.0, 1.0))
    if len(groups) < 2:
        return None
    lows = {group: sum(each.low for each in found) / len(found) for group, found in groups.items()}
    highs = {group: sum(each.high for each in found) / len(found) for group, found in groups.items()}
    return max(highs[one] - lows[other] for one in groups for other in groups if one != other)


def policy_table(path: Path, *, required: bool) -> dict[str, Any] | None:
    """A policy's entries in a file: a [policy] table, [tool.riskaudit.policy], or, if required, the whole file.

    Raises:
        SettingsError: the file can't be read, or holds no limits where they are required.
    """
    content = read_toml(path)
    tool = content.get("tool", {})
    own = tool.get("riskaudit", {}) if isinstance(tool, dict) else {}
    for table in (content.get(POLICY_TABLE), own.get(POLICY_TABLE) if isinstance(own, dict) else None):
        if isinstance(table, dict):
            return table
    if not required:
        return None
    if not content:
        raise SettingsError(f"expected policy limits in {path}, found none; see riskaudit scan --help")
    return content


def _within(total: int, unassessed: Sequence[str]) -> str:
    if not unassessed:
        return f"all {total} samples are within the limits"
    return f"{total - len(unassessed)} of {total} samples are within the limits, the others were not assessed"


def _exposure(row: SampleRow, prior_std: float) -> Exposure:
    """One sample of an audit: as certified, and where there is a calibration, as calibrated, whichever is worse."""
    revealed, rmse = _range(row, "revealed_fraction", 0.0, 1.0), _range(row, "posterior_rmse", 0.0, math.inf)
    if row.concentration > 1:
        revealed, rmse = concentrated(revealed, row.concentration, prior_std)
    group = str(row.target) if isinstance(row.target, int) else None
    return Exposure(id=row.id, group=group, revealed=revealed, rmse=rmse)


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
    own = row.proxies.get(proxy)
    if own is None or not own.assessed:
        return None
    found = [one for one in (own, row.calibrated.get(proxy)) if one is not None and one.status in RELIABLE]
    return Range(
        min(_end(one, one.low, least) for one in found),
        max(_end(one, one.high, most) for one in found),
    )


def _end(estimate: Estimate, end: float | None, extreme: float) -> float:
    """An ``end`` of an interval, else the value; one known from the other side only may be ``extreme``."""
    if end is not None:
        return end
    return extreme if estimate.status == "bracketed" or estimate.value is None else estimate.value
