"""A large audit as an audit.json of the most exposed samples, and a table of all of them beside it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from riskaudit.results import AuditResult, columns
from riskaudit.results.columns import FILE_NAME, SampleColumns, to_parquet
from riskaudit.results.facts import Facts

_LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def note(result: AuditResult) -> str:
    """What readers of the audit should be told of the table."""
    return (
        f"audit.json keeps the {columns.SHOWN:,} most exposed of {len(result.samples):,} samples, quantiles of all and "
        f"the classes; {FILE_NAME} beside it has every sample"
    )


def with_columns(files: Mapping[str, bytes], result: AuditResult) -> dict[str, bytes]:
    """Rendered files with the samples taken out of audit.json into a table; nothing to do where none was rendered.

    Args:
        files: content by name.
        result: that they were rendered from.
    """
    name = AuditResult.file_name
    if name not in files:
        return dict(files)
    document = json.loads(files[name])
    rows = {row["id"]: row for row in document["samples"]}
    table = to_parquet(document["samples"])
    about = SampleColumns(
        sha256=hashlib.sha256(table).hexdigest(),
        num_samples=len(rows),
        shown=min(columns.SHOWN, len(rows)),
        levels=list(_LEVELS),
        quantiles={proxy.id: _quantiles(document["samples"], proxy.id) for proxy in result.proxies},
        verdicts=dict(sorted(Counter(row["verdict"] for row in rows.values()).items())),
        statuses=dict(sorted(Counter(row["status"] for row in rows.values()).items())),
    )
    document["samples"] = [rows[row.id] for row in Facts(result).ranked[: columns.SHOWN]]
    document["columns"] = about.model_dump(mode="json")
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return {**files, name: text.encode(), FILE_NAME: table}


def _quantiles(rows: list[dict[str, Any]], proxy: str) -> list[float | None]:
    values = [row["proxies"][proxy]["value"] for row in rows if proxy in row["proxies"]]
    known = [value for value in values if value is not None]
    return [float(value) for value in np.quantile(known, _LEVELS)] if known else [None] * len(_LEVELS)
