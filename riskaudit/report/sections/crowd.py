"""Last part of section 3, where several samples leave together: what the other samples of an upload protect.

An attacker who knows all others (informed) faces one block of the upload's H = J^T J, one who knows none (outsider) the
whole of it. The gap is what the crowd protects. Whatever the noise, P' released numbers pin down at most
min(P', n d) directions of n inputs of d coordinates, which bounds the outsider's numbers together
(docs/theory.md, section 7).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Callout, Cell, Figure, Paragraph, Subheading, Table
from riskaudit.document.cells import ends_cell, estimate_cell
from riskaudit.document.plots import Pair, PairPlot, Reference
from riskaudit.formatting import count, interval, number, percent, short
from riskaudit.report.sections.schemes import attacker_words
from riskaudit.results import Estimate, SampleRow
from riskaudit.results.estimates import EstimateColumn
from riskaudit.results.facts import Facts
from riskaudit.results.ranks import known_ends
from riskaudit.results.verdicts import error_of, headline_of

INFORMED, OUTSIDER = headline_of("informed"), headline_of("outsider")
INFORMED_ERROR, OUTSIDER_ERROR = error_of("informed"), error_of("outsider")
# So many times the posterior error a MAP error is one that the attacker's Gaussian prior doesn't fit.
SEVERAL_TIMES = 3.0
_PRINT_ROWS = 40
_LISTED = 12


def crowd_blocks(facts: Facts, references: tuple[Reference, ...]) -> list[Block]:
    """Informed beside outsider, by classmates and by the size of uploads; nothing where samples leave alone.

    Args:
        facts: of the audit.
        references: the verdict levels, to draw.
    """
    if not facts.is_joint:
        return []
    blocks: list[Block] = [Subheading("What the crowd protects", brief=True)]
    if not (facts.num_known(INFORMED) and facts.num_known(OUTSIDER)):
        text = (
            "The revealed fraction is not known for both attackers, so what the other samples of an upload protect "
            "can't be said. That is not a finding of safety."
        )
        return [*blocks, Callout("What the crowd protects: not assessed", (text,), "unknown")]
    blocks += [Paragraph(_finding(facts), brief=True), crowd_figure(facts, references)]
    blocks += [*_classmates_blocks(facts), *_ceiling_blocks(facts), *far_map_blocks(facts)]
    blocks.append(Paragraph(_ORDER_AND_COPIES + _copies_words(facts), lead="Order and copies."))
    return blocks


_ORDER_AND_COPIES = (
    "An upload is the same in whatever order a mini-batch's samples stand, so that a reconstruction of several samples "
    "of one class may hold them in exchanged places; the numbers are for samples matched to what they are. Where more "
    "coordinates are behind an upload than numbers are released, some directions don't show at all: without a prior "
    "the outsider's error is infinite there, and only the prior keeps it finite."
)


def _copies_words(facts: Facts) -> str:
    """What was assumed of samples with equal inputs."""
    copies = [row.copies for row in facts.result.samples if row.copies > 1]
    assumed = (
        " Both attackers are taken to know which samples of an upload have the very same input: these are one unknown, "
        "and each has the numbers of it, whatever their targets are; k copies in a mean reveal what one sample would "
        "at a k-th of the noise. "
    )
    if not copies:
        return f"{assumed}There are none here. Views and near-copies count as independent samples."
    most = max(copies)
    return (
        f"{assumed}Here {count(len(copies), 'sample')} have a copy in their upload, up to {most:,} of one input. "
        "Views and near-copies count as independent samples, which is too mild: leave them out."
    )


def _finding(facts: Facts) -> str:
    size = facts.result.release.upload_size or 1
    return (
        f"Of the median sample {facts.words(OUTSIDER, median, percent)} of the input is revealed to an attacker who "
        f"knows none of the {size:,} samples of its upload, and {facts.words(INFORMED, median, percent)} to one who "
        f"knows all others. Verdicts, limits and recommended noise go by {attacker_words(facts)} (--attacker). To see "
        "what another size of uploads does, audit it and compare with --baseline."
    )


def crowd_figure(facts: Facts, references: tuple[Reference, ...]) -> Figure:
    """Both attackers' revealed fraction of every sample."""
    listed = [row for row in facts.listed if INFORMED in row.proxies and OUTSIDER in row.proxies]
    pairs = tuple(
        Pair(
            f"{short(row.id, 14)}{'' if row.classmates is None else f' ({row.classmates})'}",
            (row.proxies[INFORMED].reliable, row.proxies[OUTSIDER].reliable),
            (known_ends(row.proxies[INFORMED]), known_ends(row.proxies[OUTSIDER])),
        )
        for row in listed
    )
    classes = any(row.classmates is not None for row in listed)
    return Figure(
        id="crowd",
        title=(
            f"Not knowing the other samples takes the median revealed fraction from {facts.words(INFORMED, median)} to "
            f"{facts.words(OUTSIDER, median)}, and the largest from {facts.words(INFORMED, max)} to "
            f"{facts.words(OUTSIDER, max)}"
        ),
        alt=(
            f"Two marks for each of {count(len(pairs), 'sample')}, most exposed on top: the revealed fraction for an "
            "attacker who knows the other samples of the upload, and for one who knows none; a bar joins them."
        ),
        plot=PairPlot(
            "revealed fraction (0 = nothing, 1 = all)",
            "sample (classmates)" if classes else "sample",
            ("informed: knows all others", "outsider: knows none"),
            pairs,
            references,
            (0.0, 1.0),
        ),
        table=_crowd_table(facts),
        caption=(
            "The bar between the marks is what the crowd protects."
            + (" Thin lines are the intervals of the estimates." if _are_intervals(facts) else "")
            + (" All at the reference noise, which the client does not add." * (not facts.result.release.defended))
        ),
    )


def _are_intervals(facts: Facts) -> bool:
    return any(estimate.status == "bracketed" for name in (INFORMED, OUTSIDER) for estimate in facts.estimates(name))


def _crowd_table(facts: Facts) -> Table:
    def proxy_column(title: str, proxy: str, brief: bool = False) -> tables.RowColumn[SampleRow]:
        return tables.column(title, lambda row: estimate_cell(row.proxies.get(proxy)), brief=brief)

    columns: tables.Columns[SampleRow] = (
        tables.text("Sample", lambda row: short(row.id), brief=True),
        tables.text("Class", facts.class_name, brief=True),
        tables.text("Upload", lambda row: "none" if row.upload is None else str(row.upload), brief=True),
        tables.column("Classmates", _classmates_cell, brief=True),
        proxy_column("Revealed, informed", INFORMED, brief=True),
        proxy_column("Revealed, outsider", OUTSIDER, brief=True),
        tables.column("Protected by the crowd", _protected_cell, brief=True),
        proxy_column("Posterior error, informed", INFORMED_ERROR),
        proxy_column("Posterior error, outsider", OUTSIDER_ERROR),
        tables.column("MAP RMSE, outsider", lambda row: estimate_cell(row.proxies.get("map_rmse"))),
    )
    return tables.table(
        "crowd",
        "Each sample for both attackers",
        facts.listed,
        columns,
        note="Classmates: others of the same class in the same upload, copies left out. Protected: the informed "
        f"attacker's revealed fraction less the outsider's.{_unlisted_words(facts)}",
        sortable=True,
        layout="fitted",
        print_rows=_PRINT_ROWS,
        brief_rows=5,
        left_out=facts.num_unlisted,
    )


def _unlisted_words(facts: Facts) -> str:
    return f" {facts.num_unlisted:,} of {facts.num_samples:,} samples are not listed." if facts.num_unlisted else ""


def _classmates_cell(row: SampleRow) -> Cell:
    return Cell("no classes", tone="unknown") if row.classmates is None else Cell(str(row.classmates), row.classmates)


def _protected_cell(row: SampleRow) -> Cell:
    """What not knowing the others takes off the revealed fraction: never less than 0, whatever estimates say."""
    informed, outsider = row.proxies.get(INFORMED), row.proxies.get(OUTSIDER)
    ends = (known_ends(informed), known_ends(outsider))
    if informed is None or outsider is None or ends[0] is None or ends[1] is None:
        return Cell("not assessed", tone="unknown")
    low, high = max(0.0, ends[0][0] - ends[1][1]), max(0.0, ends[0][1] - ends[1][0])
    if informed.value is None or outsider.value is None:
        return Cell(interval(low, high), (low + high) / 2)
    gap = max(0.0, informed.value - outsider.value)
    return Cell(number(gap), gap, detail=interval(low, high) if low < high else "")


@dataclass
class _Company:
    """Samples with the same number of classmates, and their estimates by proxy."""

    classmates: int
    num_samples: int = 0
    columns: dict[str, EstimateColumn] = field(default_factory=lambda: defaultdict(EstimateColumn))

    def estimates(self, proxy: str) -> list[Estimate]:
        return list(self.columns[proxy])

    def mean(self, proxy: str) -> float | None:
        """Over the samples with a value; None where some have only an interval."""
        estimates = [each for each in self.estimates(proxy) if each.assessed]
        values = [each.value for each in estimates if each.value is not None]
        return fmean(values) if values and len(values) == len(estimates) else None


def _classmates_blocks(facts: Facts) -> list[Block]:
    by_number: dict[int, _Company] = {}
    for place, row in enumerate(facts.result.samples):
        if row.classmates is not None:
            company = by_number.setdefault(row.classmates, _Company(row.classmates))
            company.num_samples += 1
            for proxy in (INFORMED, OUTSIDER, INFORMED_ERROR, OUTSIDER_ERROR):
                if proxy in row.proxies:
                    company.columns[proxy].append(place, row.proxies[proxy])
    if not by_number:
        return []
    companies = [by_number[classmates] for classmates in sorted(by_number)]
    columns: tables.Columns[_Company] = (
        tables.text("Classmates", lambda company: str(company.classmates)),
        tables.count("Samples", lambda company: company.num_samples),
        *(
            tables.column(title, lambda company, proxy=proxy: _mean_cell(company.estimates(proxy)))  # type: ignore[misc]
            for title, proxy in (
                ("Mean revealed, informed", INFORMED),
                ("Mean revealed, outsider", OUTSIDER),
                ("Mean posterior error, informed", INFORMED_ERROR),
                ("Mean posterior error, outsider", OUTSIDER_ERROR),
            )
        ),
    )
    caption = "What an outsider learns, by the number of classmates in the upload"
    table = tables.table("classmates", caption, companies, columns, layout="compact")
    return [Paragraph(_classmates_words(companies), lead="Classmates.", brief=True), table]


def _classmates_words(companies: Sequence[_Company]) -> str:
    alone = next((company.num_samples for company in companies if company.classmates == 0), 0)
    total = sum(company.num_samples for company in companies)
    if alone == total:
        return (
            "No sample has a classmate in its upload. Samples of one class look alike to whoever sees the upload; a "
            "class of one has hardly a crowd."
        )
    words = f"{alone:,} of {count(total, 'sample')} have no classmate in their upload"
    changes = [
        f"samples {_with(company.classmates)} from {percent(informed)} to {percent(outsider)}"
        for company in (companies[0], companies[-1])
        if (informed := company.mean(INFORMED)) is not None and (outsider := company.mean(OUTSIDER)) is not None
    ]
    if len(companies) < 2 or len(changes) < 2:
        return f"{words}."
    return f"{words}. On average, not knowing the others takes {changes[0]} of the input, {changes[1]}."


def _with(classmates: int) -> str:
    return f"with {count(classmates, 'classmate')}" if classmates else "without a classmate"


def _mean_cell(estimates: Sequence[Estimate]) -> Cell:
    values = [each.value for each in estimates if each.value is not None]
    ends = [ends for each in estimates if (ends := known_ends(each)) is not None]
    if not ends:
        return Cell("not assessed", tone="unknown")
    low, high = (fmean(side) for side in zip(*ends, strict=True))
    if len(values) < len(ends):
        return Cell(interval(low, high))
    return ends_cell(fmean(values), *((low, high) if low < high else (None, None)))


def _ceiling_blocks(facts: Facts) -> list[Block]:
    """How much of n samples an upload of P' numbers can pin down at most, here and for other sizes."""
    released, size, dimension = facts.result.release.num_entries, facts.result.release.upload_size, facts.dimension
    if released is None or size is None:
        return []
    least = min(released, size * dimension)
    text = (
        f"Whatever the noise, the {released:,} released numbers pin down at most {least:,} of the "
        f"{size:,} × {dimension:,} = {size * dimension:,} coordinates behind an upload: the samples' effective "
        "dimensions add up to no more for an outsider. "
    )
    if released < size * dimension:
        whole = "no sample" if released < dimension else f"not all {size:,} of them"
        text += f"That is less than all of them, so {whole} can be revealed whole to an outsider."
    else:
        first = released // dimension + 1
        text += (
            f"That is all of them, so the ceiling protects nobody here; from uploads of {first:,} samples on not all "
            "could be revealed whole to an outsider."
        )
    text += _sum_words(facts, least)
    columns: tables.Columns[int] = (
        tables.column(
            "Samples of an upload",
            lambda each: Cell(f"{each:,}", each, detail="audited" if each == size else ""),
        ),
        tables.count("Their coordinates", lambda each: each * dimension),
        tables.count("Pinned down at most", lambda each: min(released, each * dimension)),
        tables.share("Share of them", lambda each: min(1.0, released / (each * dimension))),
    )
    table = tables.table(
        "ceiling",
        f"The most that {released:,} released numbers tell an outsider of all samples together, by their number",
        _sizes(size, released // dimension + 1),
        columns,
        note="The share bounds the mean revealed fraction of an outsider with an isotropic prior; no noise is needed "
        "for it. An attacker who knows the other samples is not bound by it.",
        layout="compact",
    )
    return [Paragraph(text, lead="The ceiling.", brief=True), table]


def _sizes(size: int, first: int) -> list[int]:
    """Samples of an upload to show: one, as many as were audited, and those around which the ceiling sinks."""
    return sorted({1, size, first, *(2**power * max(size, first) for power in range(1, 5))})


def _sum_words(facts: Facts, ceiling: int) -> str:
    """What the samples of one upload add up to, where a revealed fraction counts coordinates."""
    if facts.result.prior.kind != "isotropic":
        return ""
    highs: dict[int | None, list[float | None]] = {}
    for row in facts.result.samples:
        ends = known_ends(row.proxies.get(OUTSIDER))
        # Copies are one input.
        highs.setdefault(row.upload, []).append(None if ends is None else ends[1] / row.copies)
    # An upload in which a sample isn't assessed adds up to something unknown.
    sums = [sum(each for each in known if each is not None) for known in highs.values() if None not in known]
    if not sums:
        return ""
    most = facts.dimension * max(sums)
    bound = "at most " if _are_intervals(facts) else ""
    return f" Here they add up to {bound}{number(min(most, ceiling))} in the upload that reveals most."


def far_map_blocks(facts: Facts) -> list[Block]:
    """Where batch norm in train mode leaves the MAP attacker far behind what the posterior promises, and why."""
    if facts.result.release.batch_norm != "batch":
        return []
    far = [
        (mapped.value / posterior.value, row.id)
        for row in facts.ranked
        if (mapped := row.proxies.get("map_rmse")) is not None
        and (posterior := row.proxies.get(OUTSIDER_ERROR)) is not None
        and mapped.value is not None
        and posterior.value
        and mapped.value > SEVERAL_TIMES * posterior.value
    ]
    if not far:
        return []
    listed = ", ".join(short(name, 16) for _, name in far[:_LISTED])
    more = f" and {len(far) - _LISTED:,} more" if len(far) > _LISTED else ""
    least, most = min(ratio for ratio, _ in far), max(ratio for ratio, _ in far)
    return [
        Callout(
            f"MAP error {number(least)} to {number(most)} times the posterior error: "
            f"{count(len(far), 'sample')} of {facts.num_samples:,}",
            (
                f"Samples {listed}{more}. Batch norm with the statistics of the batch makes the upload nearly blind to "
                "a common scale of all its inputs. A Gaussian prior says little about that one direction, and these "
                "inputs lie far along it, so that the most probable reconstruction is off by much more than the "
                "posterior error, which is an average over inputs that the prior expects. It is no protection: an "
                "attacker who knows the range of the inputs fixes the scale. Verdicts go by the posterior error.",
            ),
            "medium",
        )
    ]
