"""Part of section 6 where attacks ran: rank agreement, tightness, and losses compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from riskaudit.document.blocks import Block, Cell, Column, Subheading, Table
from riskaudit.document.cells import count_cell, number_cell
from riskaudit.formatting import correlation, given, interval, number, percent, sentence, short
from riskaudit.report.attack_study import REFERENCE_NOTE, AttackStudy
from riskaudit.report.sections.attacked import attacked_figure, reliability_figure
from riskaudit.results import STRONGEST, AgreementRow, LossComparison

_PRINT_ROWS = 40
# Shown at once beside what foretells an error: the cheap proxies that it has to beat. The rest is folded.
_CHEAP = frozenset({"i2f_lower_bound", "lavp_l2_max", "lavp_cosine_max", "gradient_norm"})
_RAW = (
    "Correlations are raw and per noise level. Expect a proxy that is riskier when higher to correlate negatively with "
    "errors and positively with PSNR and SSIM, and a proxy that is riskier when lower the other way round. MSE orders "
    "samples as RMSE does."
)

_NOISE = Column("Noise std", True)
_TIGHTNESS_COLUMNS = (
    _NOISE,
    Column("Attack"),
    Column("Prediction"),
    Column("Samples", True),
    Column("Attack / predicted", True, "median"),
    Column("Below 0.9", True),
    Column("Below 0.75", True),
    Column("Not below the interval", True),
    Column("Inside the interval", True),
    Column("Not below, calibrated", True),
    Column("Inside, calibrated", True),
)


def agreement_blocks(study: AttackStudy) -> list[Block]:
    """Everything that lays predictions beside attacks; what has no data is left out."""
    rows = study.agreement
    best = [row for row in rows if row.attack == STRONGEST]
    shown = [row for row in best if _shown(study, row.proxy)]
    others = [row for row in best if not _shown(study, row.proxy)]
    single = [row for row in rows if row.attack != STRONGEST and row.attack not in study.oracle_names]
    oracle = [row for row in rows if row.attack in study.oracle_names]
    apart = "Oracle start: evidence on the theory, not an attack that anyone can run"
    found: list[Block | None] = [
        Subheading("Predictions against attacks"),
        attacked_figure(study),
        _tightness_table(study, [*best, *single], "tightness", "Attack RMSE over predicted RMSE, and intervals"),
        _agreement_table(study, shown, "agreement", "Proxies and the strongest attack, by metric"),
        _agreement_table(study, others, "agreement-others", "Other proxies and the strongest attack", folded=True),
        _attacks_table(study, single, "agreement-attacks", "Each proxy and the RMSE of each attack"),
        _agreement_table(
            study, best, "kendall", "Each proxy and the strongest attack, by metric", kendall=True, folded=True
        ),
        _agreement_table(study, single, "agreement-all", "Each proxy and each attack, by metric", folded=True),
        reliability_figure(study),
        _loss_table(study),
    ]
    if oracle:
        found += [
            Subheading("Started at the truth"),
            _tightness_table(study, oracle, "oracle-tightness", apart),
            _agreement_table(
                study, oracle, "oracle-agreement", "Each proxy and the oracle start, by metric", folded=True
            ),
        ]
    return [block for block in found if block is not None]


def _tightness_table(study: AttackStudy, rows: Iterable[AgreementRow], table_id: str, caption: str) -> Table | None:
    kept = [
        row
        for row in rows
        if row.tightness_median is not None and (row.attack == STRONGEST or row.proxy == study.predicted_proxy)
    ]
    if not kept:
        return None
    note = (
        "1 = the attack reached what was predicted; the second line holds the quartiles. Below 0.9 and 0.75: shares of "
        "samples on which an attack did better than that. Interval columns: shares of samples, before and after "
        "calibration."
    )
    # Columns of intervals that no row has say nothing.
    cells = [_tightness_cells(study, row) for row in sorted(kept, key=lambda row: _order(study, row))]
    used = [place for place in range(len(_TIGHTNESS_COLUMNS)) if any(row[place].tone != "unknown" for row in cells)]
    columns = tuple(_TIGHTNESS_COLUMNS[place] for place in used)
    body = tuple(tuple(row[place] for place in used) for row in cells)
    return Table(table_id, caption, columns, body, note=note, sortable=True, layout="compact")


def _shown(study: AttackStudy, proxy: str) -> bool:
    info = study.facts.info(proxy)
    return proxy in _CHEAP or (info is not None and info.predicts_rmse)


def _order(study: AttackStudy, row: AgreementRow) -> tuple[float, int, tuple[int, int, str]]:
    """By noise level, the strongest attack first, attacks in the study's order, proxies in the report's."""
    attack = study.attack_names.index(row.attack) if row.attack in study.attack_names else -1
    return row.noise_std, attack, study.facts.order(row.proxy)


def _tightness_cells(study: AttackStudy, row: AgreementRow) -> tuple[Cell, ...]:
    shares = (
        row.share_below_nine_tenths,
        row.share_below_three_quarters,
        row.validity,
        row.coverage,
        row.calibrated_validity,
        row.calibrated_coverage,
    )
    quartiles = interval(row.tightness_lower_quartile, row.tightness_upper_quartile)
    return (
        Cell(given(row.noise_std), row.noise_std),
        _attack_cell(study, row.attack),
        Cell(study.facts.title(row.proxy)),
        count_cell(row.num_samples),
        Cell(number(row.tightness_median or 0.0), row.tightness_median, detail=quartiles),
        *(_share_cell(share) for share in shares),
    )


def _share_cell(share: float | None) -> Cell:
    return Cell("no interval", tone="unknown") if share is None else Cell(percent(share), share)


def _attack_cell(study: AttackStudy, attack: str) -> Cell:
    return Cell("strongest" if attack == STRONGEST else study.attack_title(attack))


def _agreement_table(
    study: AttackStudy,
    rows: Sequence[AgreementRow],
    table_id: str,
    caption: str,
    *,
    kendall: bool = False,
    folded: bool = False,
) -> Table | None:
    """One row per noise level, attack and proxy, one column per metric."""
    metrics = [name for name in study.metrics if any(row.metric == name for row in rows)]
    # The ranks of MSE are those of RMSE.
    metrics = [name for name in metrics if name != "mse" or "rmse" not in metrics]
    cells = {(row.noise_std, row.attack, row.proxy, row.metric): row for row in rows}
    keys = [(row.noise_std, row.attack, row.proxy) for row in sorted(rows, key=lambda row: _order(study, row))]
    several = len({attack for _, attack, _ in keys}) > 1
    body = []
    for level, attack, proxy in dict.fromkeys(keys):
        leading = _leading(study, level, proxy)
        leading[1:1] = [_attack_cell(study, attack)] if several else []
        found = [cells.get((level, attack, proxy, name)) for name in metrics]
        body.append((*leading, *(_correlation_cell(row, kendall) for row in found)))
    columns = [_NOISE, *([Column("Attack")] if several else []), Column("Proxy")]
    columns += [Column(study.metric_title(name), True) for name in metrics]
    kind = "Kendall's tau-b" if kendall else "Spearman's rho"
    return _correlation_table(table_id, f"{caption}: {kind}", columns, body, folded=folded) if metrics else None


def _attacks_table(study: AttackStudy, rows: Sequence[AgreementRow], table_id: str, caption: str) -> Table | None:
    """One row per noise level and proxy, one column per attack; RMSE only."""
    rows = sorted((row for row in rows if row.metric == "rmse"), key=lambda row: _order(study, row))
    cells = {(row.noise_std, row.proxy, row.attack): row for row in rows}
    attacks = [name for name in study.attack_names if any(row.attack == name for row in rows)]
    keys = sorted(dict.fromkeys((row.noise_std, row.proxy) for row in rows), key=lambda key: key[0])
    body = [
        (
            *_leading(study, level, proxy),
            *(_correlation_cell(cells.get((level, proxy, name)), False) for name in attacks),
        )
        for level, proxy in keys
    ]
    columns = [_NOISE, Column("Proxy"), *(Column(study.attack_title(name), True) for name in attacks)]
    return _correlation_table(table_id, f"{caption}: Spearman's rho", columns, body, folded=True) if body else None


def _correlation_table(
    table_id: str, caption: str, columns: list[Column], body: list[tuple[Cell, ...]], *, folded: bool = False
) -> Table:
    return Table(
        table_id,
        f"{caption}, with bootstrap intervals",
        tuple(columns),
        tuple(body),
        note=f"{_RAW} {REFERENCE_NOTE}" if any(row[0].sort == 0 for row in body) else _RAW,
        sortable=True,
        layout="compact",
        print_rows=_PRINT_ROWS,
        folded=folded,
    )


def _leading(study: AttackStudy, level: float, proxy: str) -> list[Cell]:
    riskier = study.facts.riskier(proxy)
    detail = f"riskier when {riskier}" if riskier else ""
    return [Cell(given(level), level), Cell(study.facts.title(proxy), detail=detail)]


def _correlation_cell(row: AgreementRow | None, kendall: bool) -> Cell:
    if row is None:
        return Cell("not applicable", tone="unknown")
    value = row.kendall if kendall else row.spearman
    low, high = (row.kendall_low, row.kendall_high) if kendall else (row.low, row.high)
    if value is None:
        return Cell("no value", detail=short(row.note or "", 80), tone="unknown")
    return Cell(correlation(value), value, detail=_ends(low, high))


def _loss_table(study: AttackStudy) -> Table | None:
    if not study.study.loss_comparisons:
        return None
    columns = (
        Column("Noise std", True),
        Column("Attack"),
        Column("Metric"),
        Column("Own proxy"),
        Column("Other proxy"),
        Column("Samples", True),
        Column("Difference", True, "own minus other"),
        Column("p-value", True),
        Column("Reading"),
    )
    return Table(
        "losses",
        "Does the proxy of an attack's own matching loss rank its errors better? (absolute Spearman correlations)",
        columns,
        tuple(_loss_cells(study, row) for row in study.study.loss_comparisons),
        note="Paired bootstrap; p-values are two-sided and not corrected for the number of rows."
        + (f" {REFERENCE_NOTE}" if any(row.noise_std == 0 for row in study.study.loss_comparisons) else ""),
        layout="compact",
    )


def _loss_cells(study: AttackStudy, row: LossComparison) -> tuple[Cell, ...]:
    if row.low is None or row.high is None:
        reading = Cell("no value", detail=sentence(short(row.note or "", 80)), tone="unknown")
    elif row.low > 0 or row.high < 0:
        reading = Cell("own ranks better" if row.low > 0 else "other ranks better")
    else:
        reading = Cell("not told apart")
    return (
        Cell(given(row.noise_std), row.noise_std),
        Cell(study.attack_title(row.attack)),
        Cell(study.metric_title(row.metric)),
        Cell(study.facts.title(row.own), detail=_absolute(row.own_spearman)),
        Cell(study.facts.title(row.other), detail=_absolute(row.other_spearman)),
        count_cell(row.num_samples),
        Cell("no value", tone="unknown")
        if row.difference is None
        else Cell(correlation(row.difference), row.difference, detail=_ends(row.low, row.high)),
        number_cell(row.p_value, missing="no value"),
        reading,
    )


def _absolute(value: float | None) -> str:
    return "no correlation" if value is None else correlation(value)


def _ends(low: float | None, high: float | None) -> str:
    return f"{correlation(low)} to {correlation(high)}" if low is not None and high is not None else "no interval"
