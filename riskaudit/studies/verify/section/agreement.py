"""Part of section 6 where attacks ran: rank agreement, tightness, and losses compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import attrgetter

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Cell, Subheading, Table, Tone
from riskaudit.document.cells import ends_cell
from riskaudit.formatting import correlation, sentence, short
from riskaudit.results.words import WRONG_SIGN
from riskaudit.studies.verify.record import STRONGEST, AgreementRow, LossComparison
from riskaudit.studies.verify.section.figures import attacked_figure, reliability_figure
from riskaudit.studies.verify.section.reading import REFERENCE_NOTE, AttackStudy

_PRINT_ROWS = 40
# Shown at once beside what foretells an error: the cheap proxies that it has to beat. The rest is folded.
_CHEAP = frozenset({"i2f_lower_bound", "lavp_l2_max", "lavp_cosine_max", "gradient_norm"})
_RAW = (
    "Correlations are raw and per noise level. Expect a proxy that is riskier when higher to correlate negatively with "
    "errors and positively with PSNR and SSIM, and a proxy that is riskier when lower the other way round. What "
    "contradicts this is marked as wrong sign, with a question mark where the interval holds 0: such a proxy ranks the "
    "wrong samples first, however large the correlation. MSE orders samples as RMSE does."
)
_SHARES = (
    ("Below 0.9", "share_below_nine_tenths"),
    ("Below 0.75", "share_below_three_quarters"),
    ("Not below the interval", "validity"),
    ("Inside the interval", "coverage"),
    ("Not below, calibrated", "calibrated_validity"),
    ("Inside, calibrated", "calibrated_coverage"),
)
# One row of a table of correlations: noise level, attack and proxy, with an agreement row per column.
_Key = tuple[float, str, str]


def agreement_blocks(study: AttackStudy) -> list[Block]:
    """Everything that lays predictions beside attacks; what has no data is left out."""
    rows = sorted(study.agreement, key=lambda row: _order(study, row))
    best = [row for row in rows if row.attack == STRONGEST]
    main = [row for row in best if _is_main(study, row.proxy)]
    others = [row for row in best if not _is_main(study, row.proxy)]
    single = [row for row in rows if row.attack != STRONGEST and row.attack not in study.oracle_names]
    oracle = [row for row in rows if row.attack in study.oracle_names]
    blocks: list[Block | None] = [
        Subheading("Predictions against attacks"),
        attacked_figure(study),
        _tightness_table(study, [*best, *single], "tightness", "Attack RMSE over predicted RMSE, and intervals"),
        _metric_table(study, main, "agreement", "Proxies and the strongest attack, by metric"),
        _metric_table(study, others, "agreement-others", "Other proxies and the strongest attack", folded=True),
        _attack_table(study, single, "agreement-attacks", "Each proxy and the RMSE of each attack"),
        _metric_table(
            study, best, "kendall", "Each proxy and the strongest attack, by metric", kendall=True, folded=True
        ),
        _metric_table(study, single, "agreement-all", "Each proxy and each attack, by metric", folded=True),
        reliability_figure(study),
        _loss_table(study),
    ]
    if oracle:
        apart = "Oracle start: evidence on the theory, not an attack that anyone can run"
        blocks += [
            Subheading("Started at the truth"),
            _tightness_table(study, oracle, "oracle-tightness", apart),
            _metric_table(study, oracle, "oracle-agreement", "Each proxy and the oracle start, by metric", folded=True),
        ]
    return [block for block in blocks if block is not None]


def _is_main(study: AttackStudy, proxy: str) -> bool:
    info = study.facts.info(proxy)
    return proxy in _CHEAP or (info is not None and info.predicts_rmse)


def _order(study: AttackStudy, row: AgreementRow) -> tuple[float, int, tuple[int, int, str]]:
    """By noise level, the strongest attack first, attacks in the study's order, proxies in the report's."""
    attack = study.attack_names.index(row.attack) if row.attack in study.attack_names else -1
    return row.noise_std, attack, study.facts.order(row.proxy)


def _attack_name(study: AttackStudy, attack: str) -> str:
    return "strongest" if attack == STRONGEST else study.attack_title(attack)


def _tightness_table(study: AttackStudy, rows: Iterable[AgreementRow], table_id: str, caption: str) -> Table | None:
    measured = sorted(
        (
            row
            for row in rows
            if row.tightness_median is not None and (row.attack == STRONGEST or row.proxy == study.predicted_proxy)
        ),
        key=lambda row: _order(study, row),
    )
    if not measured:
        return None

    def share(title: str, name: str) -> tables.RowColumn[AgreementRow]:
        # A column that no row has says nothing.
        shown = any(getattr(row, name) is not None for row in measured)
        return tables.share(title, attrgetter(name), missing="no interval", shown=shown)

    columns: tables.Columns[AgreementRow] = (
        tables.setting("Noise std", lambda row: row.noise_std),
        tables.text("Attack", lambda row: _attack_name(study, row.attack)),
        tables.text("Prediction", lambda row: study.facts.title(row.proxy)),
        tables.count("Samples", lambda row: row.num_samples),
        tables.column(
            "Attack / predicted",
            lambda row: ends_cell(row.tightness_median, row.tightness_lower_quartile, row.tightness_upper_quartile),
            "median",
        ),
        *(share(title, name) for title, name in _SHARES),
    )
    note = (
        "1 = the attack reached what was predicted; the second line holds the quartiles. Below 0.9 and 0.75: shares of "
        "samples on which an attack did better than that. Interval columns: shares of samples, before and after "
        "calibration."
    )
    return tables.table(table_id, caption, measured, columns, note=note, sortable=True, layout="compact")


def _metric_table(
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
    by_metric = {(row.noise_std, row.attack, row.proxy, row.metric): row for row in rows}
    keys = list(dict.fromkeys((row.noise_std, row.attack, row.proxy) for row in rows))

    def column(name: str) -> tables.RowColumn[_Key]:
        return tables.column(
            study.metric_title(name), lambda key: _correlation_cell(study, by_metric.get((*key, name)), kendall)
        )

    several = len({attack for _, attack, _ in keys}) > 1
    kind = "Kendall's tau-b" if kendall else "Spearman's rho"
    columns = [column(name) for name in metrics]
    caption = f"{caption}: {kind}"
    return _correlation_table(study, table_id, caption, keys, columns, several, folded) if metrics else None


def _attack_table(study: AttackStudy, rows: Sequence[AgreementRow], table_id: str, caption: str) -> Table | None:
    """One row per noise level and proxy, one column per attack; RMSE only."""
    by_attack = {(row.noise_std, row.attack, row.proxy): row for row in rows if row.metric == "rmse"}
    attacks = [name for name in study.attack_names if any(attack == name for _, attack, _ in by_attack)]
    keys = sorted(dict.fromkeys((level, "", proxy) for level, _, proxy in by_attack), key=lambda key: key[0])

    def column(name: str) -> tables.RowColumn[_Key]:
        return tables.column(
            study.attack_title(name),
            lambda key: _correlation_cell(study, by_attack.get((key[0], name, key[2])), kendall=False),
        )

    columns = [column(name) for name in attacks]
    return _correlation_table(study, table_id, f"{caption}: Spearman's rho", keys, columns) if keys else None


def _correlation_table(
    study: AttackStudy,
    table_id: str,
    caption: str,
    keys: Sequence[_Key],
    columns: Iterable[tables.RowColumn[_Key]],
    several: bool = False,
    folded: bool = True,
) -> Table:
    """Correlations per noise level and proxy, and per attack where there are ``several``."""
    leading: tables.Columns[_Key] = (
        tables.setting("Noise std", lambda key: key[0]),
        tables.text("Attack", lambda key: _attack_name(study, key[1]), shown=several),
        tables.column("Proxy", lambda key: _proxy_cell(study, key[2]), numeric=False),
    )
    return tables.table(
        table_id,
        f"{caption}, with bootstrap intervals",
        keys,
        [*leading, *columns],
        note=f"{_RAW} {REFERENCE_NOTE}" if any(key[0] == 0 for key in keys) else _RAW,
        sortable=True,
        layout="compact",
        print_rows=_PRINT_ROWS,
        folded=folded,
    )


def _proxy_cell(study: AttackStudy, proxy: str) -> Cell:
    riskier = study.facts.riskier(proxy)
    return Cell(study.facts.title(proxy), detail=f"riskier when {riskier}" if riskier else "")


def _correlation_cell(study: AttackStudy, row: AgreementRow | None, kendall: bool) -> Cell:
    if row is None:
        return Cell("not applicable", tone="unknown")
    ends = (row.kendall, row.kendall_low, row.kendall_high) if kendall else (row.spearman, row.low, row.high)
    cell = _interval_cell(*ends, row.note or "")
    mark = study.sign_mark(row.proxy, row.metric, *ends)
    tone: Tone = "high" if mark == WRONG_SIGN else "medium"
    return replace(cell, text=f"{cell.text}{mark}", tone=tone) if mark else cell


def _interval_cell(value: float | None, low: float | None, high: float | None, note: str = "") -> Cell:
    if value is None:
        return Cell("no value", detail=short(note, 80), tone="unknown")
    ends = f"{correlation(low)} to {correlation(high)}" if low is not None and high is not None else "no interval"
    return Cell(correlation(value), value, detail=ends)


def _loss_table(study: AttackStudy) -> Table | None:
    rows = study.record.loss_comparisons
    if not rows:
        return None
    columns: tables.Columns[LossComparison] = (
        tables.setting("Noise std", lambda row: row.noise_std),
        tables.text("Attack", lambda row: study.attack_title(row.attack)),
        tables.text("Metric", lambda row: study.metric_title(row.metric)),
        tables.column("Own proxy", lambda row: _loss_cell(study, row, row.own), numeric=False),
        tables.column("Other proxy", lambda row: _loss_cell(study, row, row.other), numeric=False),
        tables.count("Samples", lambda row: row.num_samples),
        tables.column("Difference", lambda row: _interval_cell(row.difference, row.low, row.high), "own minus other"),
        tables.number("p-value", lambda row: row.p_value, missing="no value"),
        tables.column("Reading", _reading_cell, numeric=False),
    )
    return tables.table(
        "losses",
        "Does the proxy of an attack's own matching loss rank its errors better? (difference of absolute correlations)",
        rows,
        columns,
        note="Paired bootstrap; p-values are two-sided and not corrected for the number of rows."
        + (f" {REFERENCE_NOTE}" if any(row.noise_std == 0 for row in rows) else ""),
        layout="compact",
    )


def _loss_cell(study: AttackStudy, row: LossComparison, proxy: str) -> Cell:
    size, rho = (row.own_spearman, row.own_rho) if proxy == row.own else (row.other_spearman, row.other_rho)
    if size is None:
        return Cell(study.facts.title(proxy), detail="no correlation")
    if rho is None:
        return Cell(study.facts.title(proxy), detail=f"{correlation(size)}, sign not recorded")
    mark = study.sign_mark(proxy, row.metric, rho)
    return Cell(study.facts.title(proxy), detail=f"{correlation(rho)}{mark}", tone="medium" if mark else "plain")


def _reading_cell(row: LossComparison) -> Cell:
    if row.low is None or row.high is None:
        return Cell("no value", detail=sentence(short(row.note or "", 80)), tone="unknown")
    if row.low <= 0 <= row.high:
        return Cell("not told apart")
    return Cell("own ranks better" if row.low > 0 else "other ranks better")
