"""Section 6: what the numbers rest on, and what was not tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Bullets, Cell, Paragraph, Section, Subheading, Table
from riskaudit.document.cells import STATUS_WORDS, tally
from riskaudit.formatting import short
from riskaudit.results import SolverEvidence, Status
from riskaudit.results.facts import Facts
from riskaudit.studies.verify.section import AttackStudy, calibration_blocks, read_attack_study, verification_blocks

_CONTROL = {"passed": "passed", "failed": "failed", "skipped": "was skipped"}


def evidence_section(facts: Facts) -> Section:
    """All proxies, the solvers behind them, and the gaps."""
    settings = facts.result.settings
    study = read_attack_study(facts)
    blocks: list[Block] = []
    if study is not None:
        blocks += [*verification_blocks(study), Subheading("The proxies and their solvers")]
    else:
        blocks += calibration_blocks(facts, attacked=False)
    blocks += [_proxy_table(facts), _solver_table(facts)]
    why = f"{_with_reason('Solver', settings.solver, settings.solver_reason)} "
    why += _with_reason("Inverse", settings.inverse, settings.inverse_reason)
    blocks.append(Paragraph(why, lead="Why these solvers."))
    blocks.append(Bullets(_not_tested(facts, study), lead="Not tested:"))
    return Section("evidence", "Evidence", tuple(blocks))


def _with_reason(what: str, name: str, reason: str | None) -> str:
    because = f" ({reason.rstrip('.')})" if reason else ""
    return f"{what}: {short(name)}{because}."


def _proxy_table(facts: Facts) -> Table:
    def spread(title: str, statistic: Callable[[list[float]], float]) -> tables.RowColumn[str]:
        return tables.number(
            title, lambda proxy: statistic(facts.values(proxy)) if facts.values(proxy) else None, missing="no value"
        )

    columns: tables.Columns[str] = (
        tables.column("Proxy", lambda proxy: _proxy_cell(facts, proxy), numeric=False),
        spread("Median", median),
        spread("Minimum", min),
        spread("Maximum", max),
        tables.text("Riskier when", lambda proxy: facts.riskier(proxy) or "not stated"),
        tables.column(
            "Status of the samples",
            lambda proxy: Cell(tally(facts.statuses(proxy)), detail=facts.reason(proxy)),
            numeric=False,
        ),
    )
    words = "; ".join(STATUS_WORDS[status] for status in ("not_converged", "singular", "bracketed"))
    return tables.table(
        "proxies",
        "All proxies, over the samples with a value",
        facts.proxy_ids,
        columns,
        note=f"Words: {words}. Section 8 says what each proxy is, and where it comes from.",
        layout="compact",
    )


def _proxy_cell(facts: Facts, proxy: str) -> Cell:
    info = facts.info(proxy)
    return Cell(facts.title(proxy), detail=info.units if info else "units not stated")


@dataclass
class _Runs:
    """What solvers did for one quantity by one method, of all samples together."""

    quantity: str
    method: str
    matvecs: int = 0
    residual: float | None = None
    statuses: Counter[Status] = field(default_factory=Counter)

    def add(self, run: SolverEvidence) -> None:
        """Count one sample's."""
        self.matvecs += run.matvecs
        self.statuses[run.status] += 1
        if run.residual is not None:
            self.residual = run.residual if self.residual is None else max(self.residual, run.residual)


_SOLVER_COLUMNS: tables.Columns[_Runs] = (
    tables.text("Quantity", lambda row: short(row.quantity.replace("_", " "))),
    tables.text("Method", lambda row: short(row.method)),
    tables.count("Samples", lambda row: row.statuses.total()),
    tables.count("Matrix products", lambda row: row.matvecs),
    tables.number(
        "Worst residual",
        lambda row: row.residual,
        "relative",
        missing="not recorded",
    ),
    tables.text("Status", lambda row: tally(row.statuses.elements())),
)


def _solver_table(facts: Facts) -> Table | Paragraph:
    runs: dict[tuple[str, str], _Runs] = {}
    for row in facts.result.samples:
        for purpose, evidence in row.solvers.items():
            runs.setdefault((purpose, evidence.method), _Runs(purpose, evidence.method)).add(evidence)
    if not runs:
        return Paragraph("The audit holds no record of its solvers.", lead="Solver residuals: not available.")
    rows = [runs[key] for key in sorted(runs)]
    return tables.table("solvers", "Solvers and their residuals", rows, _SOLVER_COLUMNS)


def _not_tested(facts: Facts, study: AttackStudy | None) -> tuple[str, ...]:
    gaps = []
    if study is None:
        gaps.append("Attacks on these samples, and a positive control that the attacks work at all.")
    else:
        gaps.append("Attacks that are stronger than those that were run, or that know more.")
        if study.record.control.status != "passed":
            gaps.append(
                f"Whether the attacks work at all: the positive control {_CONTROL[study.record.control.status]}."
            )
        attacked = {sample for _, sample in study.best}
        missed = facts.num_samples - sum(row.id in attacked for row in facts.result.samples)
        if missed:
            gaps.append(f"Attacks on {missed:,} of the {facts.num_samples:,} audited samples.")
    if facts.result.calibration is None:
        gaps.append("Whether the intervals cover an attacker's real error: they cover the computation only.")
    gaps.append(f"Samples beyond the {facts.num_samples:,} audited.")
    empty = [facts.title(proxy) for proxy in facts.proxy_ids if not facts.values(proxy)]
    if empty:
        gaps.append(f"Proxies without any value here: {', '.join(empty)}.")
    if facts.verdicts["not_assessed"]:
        gaps.append(f"{facts.verdicts['not_assessed']:,} of {facts.num_samples:,} samples have no verdict.")
    return tuple(gaps)
