"""A large audit as an audit.json of the most exposed samples, and a table of all of them beside it."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import islice

import numpy as np

from riskaudit.report.recomputation import recompute
from riskaudit.results import AuditResult, columns
from riskaudit.results.columns import FILE_NAME, SampleColumns, to_parquet
from riskaudit.results.facts import Facts

_LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def noted(result: AuditResult) -> AuditResult:
    """The audit, whose readers are told of the table first."""
    note = (
        f"audit.json keeps the {columns.SHOWN:,} most exposed of {len(result.samples):,} samples, quantiles of all and "
        f"the classes; {FILE_NAME} beside it has every sample"
    )
    return result.model_copy(update={"warnings": [note, *result.warnings]})


def render_table(result: AuditResult) -> dict[str, bytes]:
    """audit.json with the most exposed samples, and all of them in a table, by name."""
    # Conclusions are those of the numbers, as in every other format.
    result, _ = recompute(result)
    facts, table = Facts(result), to_parquet(result.samples)
    about = SampleColumns(
        sha256=hashlib.sha256(table).hexdigest(),
        num_samples=facts.num_samples,
        shown=min(columns.SHOWN, facts.num_samples),
        levels=list(_LEVELS),
        quantiles={proxy.id: _quantiles(facts.values(proxy.id)) for proxy in result.proxies},
        verdicts=dict(sorted(Counter(row.verdict for row in result.samples).items())),
        statuses=dict(sorted(Counter(row.status for row in result.samples).items())),
    )
    most = list(islice(facts.ranked, columns.SHOWN))
    kept = result.model_copy(update={"samples": most, "columns": about})
    return {AuditResult.file_name: kept.to_json().encode(), FILE_NAME: table}


def _quantiles(known: list[float]) -> list[float | None]:
    return [float(value) for value in np.quantile(known, _LEVELS)] if known else [None] * len(_LEVELS)
