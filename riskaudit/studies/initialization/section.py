"""Part of section 6 where the initialization study ran: which first weights leak least."""

from __future__ import annotations

from dataclasses import replace

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Bullets, Cell, Figure, Paragraph, Subheading, Table
from riskaudit.document.cells import number_cell
from riskaudit.document.plots import Reference, Span, SpanPlot
from riskaudit.formatting import count, given, interval, number, percent, sentence, short
from riskaudit.results.facts import Facts
from riskaudit.studies.initialization.record import TITLES, InitializationRow, InitializationStudy
from riskaudit.studies.rows import Quartiles
from riskaudit.studies.verify.section import attack_control_blocks

# Columns that are there only where attacks ran.
_ATTACKED = (("Strongest attack's RMSE", "attack_rmse"), ("Oracle start's RMSE", "oracle_rmse"))


def initialization_blocks(facts: Facts) -> list[Block]:
    """Recommendation, figure with its table, and notes; nothing where the study didn't run."""
    study = facts.result.studies.get(InitializationStudy)
    if study is None:
        return []
    heading = Subheading("Initialization: which first weights leak least")
    blocks: list[Block] = [heading, Paragraph(sentence(study.recommendation), lead="Finding.", brief=True)]
    blocks += attack_control_blocks(study.control)

    def median(title: str, name: str) -> tables.RowColumn[InitializationRow]:
        return tables.column(title, lambda row: _quartile_cell(getattr(row, name)), "median")

    columns: tables.Columns[InitializationRow] = (
        tables.column("Initialization", _initialization_cell, numeric=False, brief=True),
        tables.column(
            "Posterior error",
            lambda row: replace(_quartile_cell(row.posterior_rmse), detail=interval(row.low, row.high)),
            "median, interval",
            brief=True,
        ),
        tables.column(
            "Revealed fraction",
            lambda row: _quartile_cell(row.revealed_fraction, ends=True),
            "median, quartiles",
            brief=True,
        ),
        median("Expected RMSE", "expected_rmse"),
        median("Largest eigenvalue", "largest_eigenvalue"),
        median("Trace of JᵀJ", "trace"),
        *(median(title, name) for title, name in _ATTACKED if any(getattr(row, name) for row in study.rows)),
        tables.text("Told apart from the best", lambda row: _comparison_words(study, row), brief=True),
    )
    table = tables.table(
        "initialization",
        "Initializations, least leakage first",
        study.rows,
        columns,
        note="Errors in data units; eigenvalues in squared gradient per squared data unit; their "
        "quartiles are in audit.json. The best is the best of the fresh ones.",
        sortable=True,
        layout="compact",
        brief=True,
    )
    figure = _figure(study, table)
    blocks.append(table if figure is None else figure)
    failed = tuple(f"{_title(row)}: {short('; '.join(row.reasons), 200)}" for row in study.rows if row.reasons)
    blocks += [Bullets(failed, lead="Without numbers, wholly or in part:")] if failed else []
    blocks.append(Bullets(tuple(sentence(short(note, 300)) for note in study.notes), lead="Notes."))
    return blocks


def _title(row: InitializationRow) -> str:
    return TITLES.get(row.initialization, short(row.initialization, 32))


def _figure(study: InitializationStudy, table: Table) -> Figure | None:
    drawn = [(row, row.posterior_rmse) for row in reversed(study.rows) if row.rank is not None]
    spans = tuple(
        Span(_title(row), error.median, row.low, row.high, error.lower, error.upper)
        for row, error in drawn
        if error is not None and error.median is not None and error.lower is not None and error.upper is not None
    )
    if not spans:
        return None
    largest = max(study.prior_rmse, *(span.maximum for span in spans))
    return Figure(
        id="initialization",
        title=_finding(study),
        alt=f"Median posterior error of {count(len(spans), 'initialization')} with intervals and quartiles.",
        plot=SpanPlot(
            f"posterior error (data units) at noise std {given(study.noise_std)}; larger is safer",
            spans,
            (Reference(study.prior_rmse, f"guess from the prior: {number(study.prior_rmse)}"),),
            (0.0, 1.05 * largest),
            "initialization",
        ),
        table=table,
        caption=(
            f"Square: median over samples and {count(study.num_seeds, 'seed')}. Thick bar: {percent(study.confidence)} "
            "bootstrap interval of the median over samples and seeds. Thin line: quartiles."
        ),
    )


def _finding(study: InitializationStudy) -> str:
    ranked = [(row, row.posterior_rmse.median) for row in study.rows if row.rank is not None and row.posterior_rmse]
    (best, most), (worst, least) = ranked[0], ranked[-1]
    if len(ranked) == 1 or most is None or least is None:
        return f"Posterior error of {_title(best)}"
    return (
        f"{_title(worst)[0].upper()}{_title(worst)[1:]} leaks most (median error {number(least)}), {_title(best)} "
        f"least ({number(most)})"
    )


def _comparison_words(study: InitializationStudy, row: InitializationRow) -> str:
    if row.rank is None:
        return "no result"
    if row.initialization == study.recommended:
        return "the best"
    return "too few samples" if row.told_apart is None else "yes" if row.told_apart else "no"


def _initialization_cell(row: InitializationRow) -> Cell:
    failed = f"{row.num_failed_seeds} of {row.num_seeds} seeds failed" if row.num_failed_seeds else ""
    return Cell(_title(row), detail=failed)


def _quartile_cell(quartiles: Quartiles | None, *, ends: bool = False) -> Cell:
    if quartiles is None:
        return number_cell(None, missing="no result")
    if quartiles.median is None:
        return Cell("singular", detail=f"{quartiles.num_infinite} of {quartiles.num_values} infinite", tone="unknown")
    detail = interval(quartiles.lower, quartiles.upper) if ends else ""
    return Cell(number(quartiles.median), quartiles.median, detail=detail)


# Which sections of the report the study adds to.
PARTS = {"evidence": initialization_blocks}
