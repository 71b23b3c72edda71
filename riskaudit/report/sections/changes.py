"""Beside an earlier audit: what is set up differently, then what got worse and for whom.

Samples are matched by id. A sample is worse only where its interval lies above the earlier one, and better only where
it lies below. An undefended release counts as full disclosure beside a defended one. What has no number or no verdict
in one of the two audits is neither better nor the same.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Callout, Cell, Paragraph, Subheading, Table, Tone
from riskaudit.document.cells import estimate_cell
from riskaudit.formatting import count, number, sentence, short, signed
from riskaudit.results import AuditResult, Estimate, SampleRow
from riskaudit.results.checks import ids_in_the_clear
from riskaudit.results.facts import Facts
from riskaudit.results.ranks import known_ends, overlaps
from riskaudit.results.words import COMPARED

Kind: TypeAlias = Literal["worse", "no longer assessed", "not assessed", "can't be told apart", "same", "better"]
# What needs a look comes first.
_ORDER: tuple[Kind, ...] = ("worse", "no longer assessed", "not assessed", "can't be told apart", "same", "better")
_TONES: dict[Kind, Tone] = {
    "worse": "high",
    "no longer assessed": "unknown",
    "not assessed": "unknown",
    "can't be told apart": "unknown",
    "same": "plain",
    "better": "low",
}
_PROXIES = (*COMPARED, "map_rmse", "i2f", "lavp_l2_max", "gradient_norm")
_CONFIGURATION = ("tool", "checkpoint", "data", "release", "threat_model", "prior", "settings")
# Exact numbers that differ by less were rounded differently.
_ROUNDING = 1e-9
_MOST_NAMED = 12
# Ends of the revealed fraction where all is disclosed.
FULL = (1.0, 1.0)


@dataclass(frozen=True)
class Change:
    """One sample in both audits, and what became of what it reveals."""

    now: SampleRow
    before: SampleRow
    estimates: tuple[Estimate | None, Estimate | None]
    kind: Kind

    @property
    def delta(self) -> float | None:
        """By how much the revealed fraction rose; None without two values."""
        now, before = (None if estimate is None else estimate.value for estimate in self.estimates)
        return None if now is None or before is None else now - before


@dataclass(frozen=True)
class Changes:
    """An audit beside an earlier one."""

    now: Facts
    before: Facts

    @cached_property
    def compared(self) -> tuple[str, str]:
        """Ids of the revealed fractions that are held against each other: those of one attacker, where both have it."""
        now, before = self.now, self.before
        return now.headline, now.headline if now.is_joint and before.is_joint else before.headline

    @cached_property
    def samples(self) -> tuple[Change, ...]:
        """Of all samples in both audits, those that got worse first, and by how much."""
        old = {row.id: row for row in self.before.result.samples}
        changes = [self._change(row, old[row.id]) for row in self.now.ranked if row.id in old]
        return tuple(sorted(changes, key=lambda each: (_ORDER.index(each.kind), -(each.delta or 0.0))))

    @cached_property
    def counts(self) -> dict[Kind, int]:
        """How many samples changed how."""
        found = Counter(change.kind for change in self.samples)
        return {kind: found[kind] for kind in _ORDER}

    def _change(self, now: SampleRow, before: SampleRow) -> Change:
        estimates = now.proxies.get(self.compared[0]), before.proxies.get(self.compared[1])
        return Change(now, before, estimates, self._kind(now, before, estimates))

    def _kind(self, now: SampleRow, before: SampleRow, estimates: tuple[Estimate | None, Estimate | None]) -> Kind:
        new = None if now.verdict == "not_assessed" else known_ends(estimates[0])
        old = None if before.verdict == "not_assessed" else known_ends(estimates[1])
        if new is None or old is None:
            return "not assessed" if old is None else "no longer assessed"
        return self._kind_of_ends(new, old, estimates)

    def _kind_of_ends(
        self, new: tuple[float, float], old: tuple[float, float], estimates: tuple[Estimate | None, Estimate | None]
    ) -> Kind:
        defended = self.now.result.release.defended, self.before.result.release.defended
        if defended == (False, False) and self.now.noise_std != self.before.noise_std:
            # Numbers at different noise that neither release carries.
            return "can't be told apart"
        if defended[0] != defended[1]:
            # Of a release without noise numbers are at the reference noise, which nobody adds.
            new, old = (new, FULL) if defended[0] else (FULL, old)
        elif estimates[0] == estimates[1] and not self.differing:
            return "same"
        margin = max(map(self._margin, estimates))
        exact = new[0] == new[1] and old[1] - old[0] <= 2 * margin
        new = (new[0] - margin, new[1] + margin)
        if not overlaps(new, old):
            return "worse" if new[0] > old[1] else "better"
        return "same" if exact else "can't be told apart"

    def _margin(self, estimate: Estimate | None) -> float:
        """How far a number is to be trusted beside its interval."""
        converged = estimate is not None and estimate.status == "converged"
        return max(_ROUNDING, *((self.now.result.settings.tolerance or 0, self.before.result.settings.tolerance or 0)
                                if converged else (0.0,)))  # fmt: skip

    @cached_property
    def differing(self) -> tuple[str, ...]:
        """What was set up differently, in words."""
        now, before = self.now.result, self.before.result
        pairs = (
            ("the model", *(each.checkpoint.sha256 or each.checkpoint.name for each in (now, before))),
            ("the data", *(each.data.sha256 or each.data.name for each in (now, before))),
            ("the release", now.release, before.release),
            ("the attacker", now.threat_model, before.threat_model),
            ("the prior", now.prior, before.prior),
            ("the settings", now.settings, before.settings),
            ("the version of riskaudit", now.tool, before.tool),
        )  # fmt: skip
        return tuple(what for what, new, old in pairs if new != old)

    @cached_property
    def newly_clear(self) -> list[str]:
        """Ids of the samples in both that stand in the clear now and didn't; nothing where one wasn't checked."""
        if not self.now.result.checks or not self.before.result.checks:
            return []
        known = {change.now.id for change in self.samples}
        earlier = set(ids_in_the_clear(self.before.result.checks))
        return [each for each in ids_in_the_clear(self.now.result.checks) if each in known and each not in earlier]


def change_words(changes: Changes) -> str:
    """What got worse, in a line."""
    counts = changes.counts
    words = [f"{amount:,} {kind}" for kind, amount in counts.items() if amount]
    text = (
        f"{', '.join(words)} (of {count(len(changes.samples), 'sample')} matched by id)"
        if words
        else "no sample matched by id"
    )
    differ = f"; different: {', '.join(changes.differing)}" if changes.differing else ""
    return text + differ


def change_blocks(changes: Changes) -> list[Block]:
    """What differs, then who got worse, classes, and all samples."""
    now, before = changes.now.result, changes.before.result
    blocks: list[Block] = [Subheading("Changes since the baseline", brief=True)]
    if changes.differing:
        blocks.append(
            Paragraph(
                f"{sentence(', '.join(changes.differing))} Changes may come from that.", lead="Different:", brief=True
            )
        )
    if now.data.sha256 != before.data.sha256 or now.data.sha256 is None:
        text = "The data differ or are not hashed, so equal ids may not mean equal samples."
        blocks.append(Callout("Samples are matched by id", (text,), "medium", brief=True))
    if now.release.defended != before.release.defended:
        which = "This release" if not now.release.defended else "The baseline's release"
        text = f"{which} is undefended, which counts as full disclosure whatever its numbers at the reference noise."
        blocks.append(Callout("Defended beside undefended", (text,), "medium", brief=True))
    blocks.append(_summary(changes))
    blocks += [_configuration_table(now, before), _mean_table(changes.now, changes.before)]
    if changes.samples:
        blocks += _class_table(changes)
        blocks.append(_sample_table(changes))
    return blocks


def _summary(changes: Changes) -> Paragraph:
    matched = changes.samples
    new, gone = changes.now.num_samples - len(matched), changes.before.num_samples - len(matched)
    text = (
        f"Baseline of {changes.before.result.created_at}: {count(len(matched), 'sample')} matched by id, {new:,} new, "
        f"{gone:,} no longer there."
    )
    counts = changes.counts
    if matched:
        text += f" {', '.join(f'{amount:,} {kind}' for kind, amount in counts.items() if amount)}."
    deltas = [change.delta for change in matched if change.delta is not None]
    if deltas and changes.now.result.release.defended == changes.before.result.release.defended:
        text += f" The revealed fraction changed by {signed(statistics.fmean(deltas))} on average."
    worse = [short(change.now.id) for change in matched if change.kind == "worse"]
    if worse:
        more = f" and {len(worse) - _MOST_NAMED:,} more" if len(worse) > _MOST_NAMED else ""
        text += f" Worse, the most so first: {', '.join(worse[:_MOST_NAMED])}{more}."
    lost = [short(change.now.id) for change in matched if change.kind == "no longer assessed"]
    if lost:
        more = f" and {len(lost) - _MOST_NAMED:,} more" if len(lost) > _MOST_NAMED else ""
        text += f" No longer assessed, which is never an improvement: {', '.join(lost[:_MOST_NAMED])}{more}."
    if changes.newly_clear:
        text += f" Newly in the clear: {', '.join(map(short, changes.newly_clear[:_MOST_NAMED]))}."
    decisions = [
        None if each.policy is None else each.policy.decision for each in (changes.before.result, changes.now.result)
    ]
    if decisions[0] != decisions[1]:
        text += f" Decision: {decisions[0] or 'no policy'}, now {decisions[1] or 'no policy'}."
    return Paragraph(text, brief=True)


def _class_table(changes: Changes) -> list[Block]:
    groups: dict[str, list[Change]] = {}
    for change in changes.samples:
        groups.setdefault(changes.now.class_name(change.now), []).append(change)
    if not 1 < len(groups) < len(changes.samples) or not changes.counts["worse"]:
        return []

    def amount(kind: str) -> tables.RowColumn[tuple[str, list[Change]]]:
        return tables.count(kind.capitalize(), lambda pair: sum(change.kind == kind for change in pair[1]))

    rows = sorted(groups.items(), key=lambda pair: -sum(change.kind == "worse" for change in pair[1]) / len(pair[1]))
    columns: tables.Columns[tuple[str, list[Change]]] = (
        tables.text("Class", lambda pair: pair[0]),
        tables.count("Samples", lambda pair: len(pair[1])),
        *map(amount, ("worse", "no longer assessed", "better")),
    )
    return [tables.table("changed-classes", "For whom: the classes, worst first", rows, columns, sortable=True)]


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return short(", ".join(_shown(part) for part in value) or "empty", 80)
    return number(value) if isinstance(value, float) else short(str(value), 80)


def _configuration_table(result: AuditResult, baseline: AuditResult) -> Table | Paragraph:
    now = dict(_flatten(result.model_dump(include=set(_CONFIGURATION))))
    before = dict(_flatten(baseline.model_dump(include=set(_CONFIGURATION))))
    names = [name for name in dict.fromkeys((*now, *before)) if now.get(name) != before.get(name)]
    if not names:
        return Paragraph("Configuration, checkpoint and data are the same as in the baseline.")
    columns: tables.Columns[str] = (
        tables.text("Setting", lambda name: name),
        tables.text("Baseline", lambda name: _shown(before.get(name))),
        tables.text("Now", lambda name: _shown(now.get(name))),
    )
    return tables.table("changed-configuration", "What is configured differently", names, columns)


def _mean_table(now: Facts, before: Facts) -> Table:
    def mean(facts: Facts, proxy: str) -> float | None:
        values = facts.values(proxy)
        return statistics.fmean(values) if values else None

    def change(proxy: str) -> Cell:
        new, old = mean(now, proxy), mean(before, proxy)
        return _change_cell(None if new is None or old is None else new - old, missing="no value")

    columns: tables.Columns[str] = (
        tables.text("Proxy", now.title),
        tables.number("Baseline mean", lambda proxy: mean(before, proxy), missing="no value"),
        tables.number("Mean now", lambda proxy: mean(now, proxy), missing="no value"),
        tables.column("Change", change),
    )
    proxies = [proxy for proxy in _PROXIES if now.values(proxy) or before.values(proxy)]
    differ = "Where several samples leave together these are an outsider's numbers unless they say otherwise."
    note = differ if now.is_joint != before.is_joint else ""
    return tables.table("changed-means", "Means over the samples with a value", proxies, columns, note=note, brief=True)


def _change_cell(delta: float | None, doubt: str = "", missing: str = "not applicable") -> Cell:
    return Cell(doubt or missing, tone="unknown") if delta is None else Cell(signed(delta), delta, detail=doubt)


def _sample_table(changes: Changes) -> Table:
    def change(each: Change) -> Cell:
        return _change_cell(each.delta, each.kind if each.kind == "can't be told apart" else "")

    columns: tables.Columns[Change] = (
        tables.text("Sample", lambda each: short(each.now.id)),
        tables.column("Became", lambda each: Cell(each.kind, tone=_TONES[each.kind]), numeric=False),
        tables.column("Revealed fraction, baseline", lambda each: estimate_cell(each.estimates[1])),
        tables.column("Revealed fraction, now", lambda each: estimate_cell(each.estimates[0])),
        tables.column("Change", change),
        tables.text("Verdict", lambda each: f"{each.before.verdict} → {each.now.verdict}".replace("_", " ")),
    )
    title = "Samples matched by id, what got worse first"
    return tables.table("changed-samples", title, changes.samples, columns, sortable=True, print_rows=40)
