"""Numbers that several sections need, computed once from an `AuditResult`."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import prod

from riskaudit.formatting import inside, number, target_text
from riskaudit.results import columns
from riskaudit.results.audit import AuditResult, SampleRow
from riskaudit.results.base import Estimate, Status, Verdict
from riskaudit.results.estimates import EstimateColumn
from riskaudit.results.ranks import known_ends, position, rank_ranges
from riskaudit.results.subject import Attacker
from riskaudit.results.verdicts import attacker_of, error_of, headline_of
from riskaudit.results.words import ProxyInfo, Riskier, riskier_end

# Samples that are listed one by one, at most; a page with tens of thousands takes minutes to load.
MOST_LISTED = 1000
# The best stand-in first: what ranks the samples when the headline proxy has no value.
_STAND_INS = ("map_rmse", "posterior_rmse", "i2f", "lavp_l2_max", "gradient_norm")
# Of an upload of several samples these are told apart by what the attacker knows.
_OF_OUTSIDERS = frozenset({headline_of("outsider"), error_of("outsider")})


@dataclass(frozen=True)
class Facts:
    """An audit with what follows from it; ``more_words`` describe proxies that only a study has.

    Everything is computed on first use.
    """

    result: AuditResult
    more_words: tuple[ProxyInfo, ...] = ()

    @cached_property
    def num_samples(self) -> int:
        """Rows of the audit, failed ones included."""
        return len(self.result.samples)

    @cached_property
    def dimension(self) -> int:
        """Coordinates of one input."""
        return prod(self.result.data.input_shape)

    @cached_property
    def attacker(self) -> Attacker | None:
        """Whose numbers verdicts and limits go by; None where every sample leaves alone."""
        return attacker_of(self.result.release)

    @property
    def is_joint(self) -> bool:
        """Whether several samples leave together."""
        return self.attacker is not None

    @property
    def headline(self) -> str:
        """Id of the revealed fraction that verdicts and limits go by."""
        return headline_of(self.attacker)

    @property
    def error(self) -> str:
        """Id of the posterior error likewise."""
        return error_of(self.attacker)

    @cached_property
    def proxy_ids(self) -> tuple[str, ...]:
        """All proxies of this audit, in the order of the report."""
        listed = {info.id for info in self.result.proxies}
        return tuple(sorted(listed | set(self._columns), key=self.order))

    @cached_property
    def _infos(self) -> dict[str, ProxyInfo]:
        """What is known of proxies, by id."""
        return {info.id: info for info in (*self.more_words, *self.result.proxies)}

    def info(self, proxy: str) -> ProxyInfo | None:
        """What the audit says about a proxy."""
        return self._infos.get(proxy)

    def order(self, proxy: str) -> tuple[int, int, str]:
        """A proxy's place in tables, as a key to sort by; those of which the audit says nothing come last."""
        places = {described: place for place, described in enumerate(self._infos)}
        info = self.info(proxy)
        return (info.order, places[proxy], proxy) if info else (sys.maxsize, 0, proxy)

    def title(self, proxy: str) -> str:
        """A proxy's name for readers."""
        info = self.info(proxy)
        return self._told_apart(proxy, info.title) if info else proxy

    def short_title(self, proxy: str) -> str:
        """A proxy's name for the heads of tables."""
        info = self.info(proxy)
        return self._told_apart(proxy, info.short_title or info.title) if info else proxy

    def _told_apart(self, proxy: str, title: str) -> str:
        """A title that says which attacker is meant, where there are two."""
        return f"Outsider's {inside(title)}" if self.is_joint and proxy in _OF_OUTSIDERS else title

    def riskier(self, proxy: str) -> str:
        """Whether more of a proxy or less of it is the greater risk, or nothing where that isn't known."""
        info = self.info(proxy)
        return info.riskier if info else ""

    def reason(self, proxy: str) -> str:
        """Why no sample has a value of this proxy, or nothing."""
        info = self.info(proxy)
        return (info.reason or "") if info else ""

    def units(self, proxy: str) -> str:
        """A proxy's units, or nothing."""
        info = self.info(proxy)
        return info.units if info else ""

    def reasons_note(self, proxies: Iterable[str]) -> str:
        """Why proxies have no value, each reason once: "Posterior error, MAP RMSE: needs ..."."""
        groups: dict[str, list[str]] = {}
        for proxy in proxies:
            if self.reason(proxy):
                groups.setdefault(self.reason(proxy).rstrip("."), []).append(self.title(proxy))
        return " ".join(f"{', '.join(titles)}: {reason}." for reason, titles in groups.items())

    @cached_property
    def _columns(self) -> dict[str, EstimateColumn]:
        """All samples' estimates by proxy: rows may be many, and few of them in memory at once."""
        found = defaultdict[str, EstimateColumn](EstimateColumn)
        for place, row in enumerate(self.result.samples):
            for proxy, estimate in row.proxies.items():
                found[proxy].append(place, estimate)
        return dict(found)

    def estimates(self, proxy: str) -> EstimateColumn:
        """Of a proxy, in the samples' order, of those that have an entry for it."""
        return self._columns.get(proxy, EstimateColumn())

    @property
    def bracketed(self) -> bool:
        """Whether some sample's revealed fraction is an interval."""
        return any(estimate.status == "bracketed" for estimate in self.estimates(self.headline))

    def cautious(self, proxy: str) -> list[float]:
        """The riskier end of every estimate that has a value or an interval: what a claim of protection needs."""
        riskier = self._end_of(proxy)
        ends = []
        for estimate in self.estimates(proxy):
            end = estimate.high if riskier == "higher" else estimate.low
            if estimate.value is not None:
                ends.append(estimate.value if end is None else end)
            elif estimate.assessed and end is not None:
                ends.append(end)
        return ends

    def words(
        self, proxy: str, statistic: Callable[[list[float]], float], show: Callable[[float], str] = number
    ) -> str:
        """A statistic of the samples' values in words, as an interval where some samples have only intervals.

        Args:
            proxy: of which some sample has a value or an interval.
            statistic: one that grows with each sample's number, as the median and the extremes do.
            show: a number in words.
        """
        if not self.without_point(proxy):
            return show(statistic(self.values(proxy)))
        ends = [ends for estimate in self.estimates(proxy) if (ends := _ends(estimate)) is not None]
        low, high = (statistic(list(side)) for side in zip(*ends, strict=True))
        return f"{show(low)} to {show(high)}"

    def without_point(self, proxy: str) -> int:
        """How many samples have an interval that is too wide for a point value."""
        return sum(estimate.value is None and estimate.assessed for estimate in self.estimates(proxy))

    def num_known(self, proxy: str) -> int:
        """How many samples have a value or an interval."""
        return len(self.values(proxy)) + self.without_point(proxy)

    @cached_property
    def rank_ranges(self) -> dict[str, tuple[int, int]]:
        """First and last rank that each sample may have, by id, where intervals leave ranks open; else nothing."""
        proxy = self.ranking_proxy
        if proxy is None:
            return {}
        known = {
            place: one
            for place, estimate in self.estimates(proxy).by_place()
            if (one := known_ends(estimate)) is not None
        }
        if all(low == high for low, high in known.values()):
            return {}
        ends = {row.id: known[place] for place, row in enumerate(self.result.samples) if place in known}
        riskier = self._end_of(proxy)
        return dict(zip(ends, rank_ranges(list(ends.values()), riskier), strict=True))

    @cached_property
    def num_rivals(self) -> int:
        """How many samples may be the most exposed, as far as intervals tell; 0 where that isn't open."""
        rivals = sum(first == 1 for first, _ in self.rank_ranges.values())
        return rivals if rivals > 1 else 0

    def values(self, proxy: str) -> list[float]:
        """All known values of a proxy, in the samples' order."""
        return [estimate.value for estimate in self.estimates(proxy) if estimate.value is not None]

    def statuses(self, proxy: str) -> list[Status]:
        """One status per sample; a sample without the entry counts as its own status or failed."""
        return [
            row.proxies[proxy].status
            if proxy in row.proxies
            else ("failed" if row.status == "failed" else "not_applicable")
            for row in self.result.samples
        ]

    @cached_property
    def verdicts(self) -> dict[Verdict, int]:
        """How many samples carry each verdict."""
        order: tuple[Verdict, ...] = ("high", "medium", "low", "not_assessed")
        counts = Counter(row.verdict for row in self.result.samples)
        return {verdict: counts[verdict] for verdict in order}

    @cached_property
    def num_assessed(self) -> int:
        """Samples with a verdict of high, medium or low."""
        return self.num_samples - self.verdicts["not_assessed"]

    @cached_property
    def ranking_proxy(self) -> str | None:
        """The proxy that ranks the samples."""
        return next((proxy for proxy in (self.headline, *_STAND_INS) if self.num_known(proxy)), None)

    @cached_property
    def _order(self) -> list[int]:
        """Places of the samples, the most exposed one's first, of those without a value last."""
        places, proxy = range(self.num_samples), self.ranking_proxy
        if proxy is None:
            return list(places)
        riskier = self._end_of(proxy)
        sign = -1.0 if riskier == "higher" else 1.0
        positions = {place: position(estimate, riskier) for place, estimate in self.estimates(proxy).by_place()}

        def key(place: int) -> tuple[bool, float]:
            value = positions.get(place)
            return (value is None, sign * value if value is not None else 0.0)

        return sorted(places, key=key)

    @property
    def ranked(self) -> Iterator[SampleRow]:
        """Samples, most exposed first; those without a value last."""
        return (self.result.samples[place] for place in self._order)

    @cached_property
    def listed(self) -> tuple[SampleRow, ...]:
        """The most exposed samples, which are listed one by one: fewer in a large audit, whose table has every row."""
        return tuple(islice(self.ranked, columns.SHOWN if self.num_samples > columns.MANY else MOST_LISTED))

    @property
    def num_unlisted(self) -> int:
        """How many samples aren't."""
        return self.num_samples - len(self.listed)

    def _end_of(self, proxy: str) -> Riskier:
        return riskier_end(proxy, self.result.proxies)

    def class_name(self, row: SampleRow) -> str:
        """A sample's label for readers."""
        return target_text(row.target, self.result.data.class_names)

    @cached_property
    def noise_std(self) -> float | None:
        """The noise that the numbers are computed at, per released entry."""
        release = self.result.release
        if release.defended and release.noise:
            return release.noise.std
        return release.reference_noise_std or (release.noise.std if release.noise else None)

    @cached_property
    def noise_needed(self) -> list[float]:
        """Known noise stds for the target, in the samples' order."""
        targets = [row.noise_std_for_target for row in self.result.samples]
        return [target.std for target in targets if target is not None and target.std is not None]

    @cached_property
    def target_rmse(self) -> float | None:
        """The error that the noise is meant to force on an attacker."""
        rows = (row.noise_std_for_target for row in self.result.samples)
        return next((target.target_rmse for target in rows if target), self.result.settings.target_rmse)


def _ends(estimate: Estimate) -> tuple[float, float] | None:
    """Ends for a statistic; a value that isn't reliable counts as it is shown."""
    value = estimate.value
    return known_ends(estimate) or (None if value is None else (value, value))
