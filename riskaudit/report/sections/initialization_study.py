"""Part of section 6 where the initialization study ran: which first weights leak least."""

from __future__ import annotations

from riskaudit.document.blocks import Block, Bullets, Callout, Cell, Column, Figure, Paragraph, Subheading, Table
from riskaudit.document.cells import number_cell
from riskaudit.document.plots import Reference, Span, SpanPlot
from riskaudit.formatting import count, given, interval, number, percent, sentence, short
from riskaudit.results import Control, InitializationRow, InitializationStudy, Quartiles
from riskaudit.results.facts import Facts

_TITLES = {
    "uniform": "uniform (−0.5, 0.5)",
    "normal": "normal, same variance",
    "kaiming_uniform": "Kaiming uniform",
    "kaiming_normal": "Kaiming normal",
    "xavier_uniform": "Xavier uniform",
    "xavier_normal": "Xavier normal",
    "orthogonal": "orthogonal",
    "default": "PyTorch's default",
    "checkpoint": "the checkpoint itself",
}


def initialization_blocks(facts: Facts) -> list[Block]:
    """Recommendation, figure with its table, and notes; nothing where the study didn't run."""
    study = facts.result.studies.initialization
    if study is None:
        return []
    heading = Subheading("Initialization: which first weights leak least")
    blocks: list[Block] = [heading, Paragraph(sentence(study.recommendation), lead="Finding.", brief=True)]
    blocks += attack_control_blocks(study.control)
    table = _table(study)
    figure = _figure(study, table)
    blocks.append(table if figure is None else figure)
    failed = tuple(f"{_title(row)}: {short('; '.join(row.reasons), 200)}" for row in study.rows if row.reasons)
    blocks += [Bullets(failed, lead="Without numbers, wholly or in part:")] if failed else []
    blocks.append(Bullets(tuple(sentence(short(note, 300)) for note in study.notes), lead="Notes."))
    return blocks


def attack_control_blocks(control: Control | None) -> list[Block]:
    """What a study's attacks are worth, where that isn't much."""
    if control is None or control.status == "passed":
        return []
    text = (
        "The attacks of this study did not reconstruct an undefended network that must be reconstructible."
        if control.status == "failed"
        else f"The attacks of this study had no positive control. {sentence(control.reason or '')}"
    )
    return [Callout("Attack errors below are no evidence of protection", (text.strip(),), "unknown")]


def _title(row: InitializationRow) -> str:
    return _TITLES.get(row.initialization, short(row.initialization, 32))


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
        alt=f"Median posterior RMSE of {count(len(spans), 'initialization')} with intervals and quartiles.",
        plot=SpanPlot(
            f"posterior RMSE (data units) at noise std {given(study.noise_std)}; larger is safer",
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
        return f"Posterior RMSE of {_title(best)}"
    return (
        f"{_title(worst)[0].upper()}{_title(worst)[1:]} leaks most (median error {number(least)}), {_title(best)} "
        f"least ({number(most)})"
    )


def _table(study: InitializationStudy) -> Table:
    attacked = any(row.attack_rmse is not None for row in study.rows)
    oracle = any(row.oracle_rmse is not None for row in study.rows)
    columns = [
        Column("Initialization"),
        Column("Posterior RMSE", True, "median, interval"),
        Column("Revealed fraction", True, "median, quartiles"),
        Column("Expected RMSE", True, "median"),
        Column("Largest eigenvalue", True, "median"),
        Column("Trace of JᵀJ", True, "median"),
        *([Column("Strongest attack's RMSE", True, "median")] if attacked else []),
        *([Column("Oracle start's RMSE", True, "median")] if oracle else []),
        Column("Told apart from the best"),
    ]
    return Table(
        "initialization",
        "Initializations, least leakage first",
        tuple(columns),
        tuple(_cells(study, row, attacked, oracle) for row in study.rows),
        note="Errors in data units; eigenvalues in squared gradient per squared data unit; their "
        "quartiles are in audit.json. The best is the best of the fresh ones.",
        sortable=True,
        layout="compact",
        brief=True,
        brief_columns=(0, 1, 2, len(columns) - 1),
    )


def _cells(study: InitializationStudy, row: InitializationRow, attacked: bool, oracle: bool) -> tuple[Cell, ...]:
    words: dict[bool | None, str]
    if row.rank is None:
        words = {None: "no result"}
    elif row.initialization == study.recommended:
        words = {None: "the best"}
    else:
        words = {True: "yes", False: "no", None: "too few samples"}
    error = _quartile_cell(row.posterior_rmse, "")
    missing = f"{row.num_failed_seeds} of {row.num_seeds} seeds failed" if row.num_failed_seeds else ""
    return (
        Cell(_title(row), detail=missing),
        Cell(error.text, error.sort, detail=interval(row.low, row.high), tone=error.tone),
        _quartile_cell(row.revealed_fraction),
        _quartile_cell(row.expected_rmse, ""),
        _quartile_cell(row.largest_eigenvalue, ""),
        _quartile_cell(row.trace, ""),
        *([_quartile_cell(row.attack_rmse, "")] if attacked else []),
        *([_quartile_cell(row.oracle_rmse, "")] if oracle else []),
        Cell(words[row.told_apart if row.told_apart in words else None]),
    )


def _quartile_cell(quartiles: Quartiles | None, detail: str | None = None) -> Cell:
    """A median with its quartiles, or with another detail."""
    if quartiles is None:
        return number_cell(None, missing="no result")
    if quartiles.median is None:
        return Cell("singular", detail=f"{quartiles.num_infinite} of {quartiles.num_values} infinite", tone="unknown")
    ends = interval(quartiles.lower, quartiles.upper) if detail is None else detail
    return Cell(number(quartiles.median), quartiles.median, detail=ends)
