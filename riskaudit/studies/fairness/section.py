"""Last part of section 4: how evenly protection falls, whether groups differ, and whom the average hides.

From ``studies.fairness``, or computed from the samples where an audit has no such study.
"""

from __future__ import annotations

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Cell, Figure, Paragraph, Subheading, Table
from riskaudit.document.cells import number_cell
from riskaudit.document.plots import Panel, PanelPlot
from riskaudit.formatting import count, interval, number, percent, sentence, short
from riskaudit.results.facts import Facts
from riskaudit.studies.fairness.exposure import fairness
from riskaudit.studies.fairness.record import ATTACK_RMSE, Distribution, FairnessStudy, SampleExposure
from riskaudit.studies.fairness.section_groups import comparison_blocks, measure_title

_FEWEST_FOR_CURVE = 5
_CURVE_POINTS = 21
_LISTED_SAMPLES = 10


def read_fairness(facts: Facts) -> FairnessStudy:
    """The fairness study of an audit; worked out here where there is none that can be read."""
    return facts.result.studies.get(FairnessStudy) or fairness(facts.result)


def fairness_study_blocks(facts: Facts) -> list[Block]:
    """Lorenz curves, groups compared, the least protected samples, and their influence on training."""
    study = read_fairness(facts)
    measured = [each for each in study.distributions if each.num_samples]
    blocks: list[Block] = [Subheading("How evenly protection falls")]
    if not measured:
        text = (
            "No sample has a revealed fraction or a posterior error that may be relied on, so how evenly protection "
            "falls is not known. That is not a finding of safety."
        )
        return [*blocks, Paragraph(text)]
    drawn = [each for each in measured if each.num_samples >= _FEWEST_FOR_CURVE and each.lorenz]
    table = _distribution_table(facts, measured)
    blocks.append(_lorenz_figure(facts, drawn, table) if drawn else table)
    blocks += [block for by in ("class", "group") for block in comparison_blocks(facts, study, by)]
    blocks += _exposed_blocks(facts, study)
    if study.notes:
        blocks.append(Paragraph(" ".join(sentence(note) for note in study.notes), lead="Notes."))
    return blocks


def _lorenz_figure(facts: Facts, drawn: list[Distribution], table: Table) -> Figure:
    first = drawn[0]
    share = first.worst_tenth_share
    held = {
        "revealed_fraction": "of all that is revealed",
        "posterior_rmse": "of all the error that attackers are left",
        ATTACK_RMSE: "of all the error that attackers were left",
    }[first.measure]
    carries = percent(share) if share is not None else "an unknown share"
    return Figure(
        id="fairness",
        title=f"The most exposed tenth of the samples carries {carries} {held} (10\u00a0% if all were alike)",
        alt=f"Lorenz curves of {count(len(drawn), 'measure')} over the samples, each with the line of equality.",
        plot=PanelPlot(
            "share of samples, least value first",
            "share of the sum",
            tuple(Panel(measure_title(facts, each.measure), _points(each)) for each in drawn),
            "Lorenz curve",
            "",
            "all samples alike",
            False,
            (-0.03, 1.03),
            joined=True,
        ),
        table=table,
        caption=(
            "The further a curve hangs below the line, the more unevenly its quantity falls on the samples. "
            f"{_at_reference(facts)}"
        ).strip(),
    )


def _points(each: Distribution) -> tuple[tuple[float, float], ...]:
    """Few enough for markers; first and last are always there."""
    points = [(point.samples, point.quantity) for point in each.lorenz]
    last = len(points) - 1
    chosen = sorted({round(number * last / (_CURVE_POINTS - 1)) for number in range(_CURVE_POINTS)})
    return tuple(points[number] for number in chosen)


def _at_reference(facts: Facts) -> str:
    if facts.result.release.defended:
        return ""
    return "Numbers are those of the reference noise, which the client does not add: they rank samples."


def _distribution_table(facts: Facts, measured: list[Distribution]) -> Table:
    columns: tables.Columns[Distribution] = (
        tables.column(
            "Measure",
            lambda each: Cell(measure_title(facts, each.measure), detail=sentence(each.note) if each.note else ""),
            numeric=False,
        ),
        tables.count("Samples", lambda each: each.num_samples),
        tables.number("Gini", lambda each: each.gini),
        tables.share("Riskiest tenth holds", lambda each: each.worst_tenth_share),
        tables.number("Median", lambda each: each.median),
        tables.number("Worst", lambda each: each.worst),
        tables.number("Worst / median", lambda each: each.worst_to_median),
        tables.text("Worst sample", lambda each: short(each.worst_sample or "none", 24)),
    )
    left_out = max(each.num_left_out for each in measured)
    note = f" {count(left_out, 'sample')} without a value to rely on left out." if left_out else ""
    return tables.table(
        "fairness",
        "How unevenly each measure falls on the samples",
        measured,
        columns,
        note="Gini: 0 = all samples alike, towards 1 = few samples carry all. Worst: the greatest revealed fraction, "
        f"the least error.{note}",
        layout="compact",
    )


def _exposed_blocks(facts: Facts, study: FairnessStudy) -> list[Block]:
    ranked = sorted(
        (each for each in study.samples if each.protection is not None), key=lambda each: each.protection or 0.0
    )
    average = study.average_protection
    if len(study.samples) < 2 or not ranked or average is None:
        return []
    unknown = len(study.not_assessed)
    doubt = (
        f" {count(unknown, 'more sample')} {'is' if unknown == 1 else 'are'} not assessed and may be less protected."
        if unknown
        else ""
    )
    limit, number_of = "a tenth" if study.threshold == 0.1 else percent(study.threshold), len(study.exposed)
    least = ranked[0].share_of_average
    if number_of:
        finding = (
            f"{number_of:,} of {len(study.samples):,} samples "
            f"{'has' if number_of == 1 else 'have'} less than {limit} of the average's protection"
        )
    else:
        rest = f"; the least protected has {percent(min(1.0, least))}" if least is not None else ""
        finding = f"No assessed sample has less than {limit} of the average's protection{rest}"
    text = (
        f"Protection is the posterior RMSE, of intervals the lower end; the average is {number(average)}."
        f"{doubt} {_influence_words(study)}"
    )
    shown = ranked[: max(_LISTED_SAMPLES, number_of)]
    return [
        Subheading("Who is least protected"),
        Paragraph(text, lead=f"{finding}.", brief=bool(number_of)),
        _exposed_table(facts, study, shown),
    ]


def _influence_words(study: FairnessStudy) -> str:
    link = study.influence
    meaning = (
        "By the bound ‖change of the release‖ ≤ √l₁ ‖change of the input‖ (Zhang et al., NeurIPS 2023; first order), "
        "a small change of a sample with a large l₁, the largest eigenvalue of JᵀJ, can move training most"
    )
    if link.spearman is None:
        return f"{meaning}; whether these are the exposed samples can't be said ({link.note})."
    ends = f" ({interval(link.low, link.high)})".replace("-", "−") if link.low is not None else ""
    rho = f"{link.spearman:.2f}".replace("-", "−")
    if link.low is not None and link.low > 0:
        exposed = f"rank correlation of √l₁ with what is revealed {rho}{ends}"
        return f"{meaning}: these are also the more exposed ones, {exposed}."
    return f"{meaning}; that these are also the more exposed ones is not shown (rank correlation {rho}{ends})."


def _exposed_table(facts: Facts, study: FairnessStudy, shown: list[SampleExposure]) -> Table:
    rows = {row.id: row for row in facts.result.samples}
    columns: tables.Columns[SampleExposure] = (
        tables.text("Sample", lambda each: short(each.sample_id)),
        tables.text(
            "Class", lambda each: facts.class_name(rows[each.sample_id]) if each.sample_id in rows else "unknown"
        ),
        tables.text(
            "Group",
            lambda each: short(each.group or "none", 24),
            shown=any(each.group is not None for each in study.samples),
        ),
        tables.column(
            "Protection: posterior RMSE, lower end",
            lambda each: number_cell(each.protection, each.posterior_rmse.status if each.posterior_rmse else None),
        ),
        tables.share("Share of the average", lambda each: each.share_of_average),
        tables.number("Influence √l₁, upper end", lambda each: each.influence, missing="unknown"),
        tables.number(
            "Strongest attack's RMSE",
            lambda each: each.attack_rmse,
            missing="no result",
            shown=any(each.attack_rmse is not None for each in study.samples),
        ),
    )
    return tables.table(
        "least-protected",
        "The least protected samples, beside the average and what they can do to training",
        shown,
        columns,
        sortable=True,
        print_rows=_LISTED_SAMPLES,
        layout="compact",
    )


# Which sections of the report the study adds to.
PARTS = {"who-is-exposed": fairness_study_blocks}
