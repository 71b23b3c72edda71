"""The strongest attack per sample: the least error over all attacks that an attacker could have run."""

from __future__ import annotations

from collections.abc import Iterable

from riskaudit.studies.rows import AttackRow


def strongest(
    rows: Iterable[AttackRow], metric: str = "rmse", *, higher_is_better: bool = False
) -> dict[tuple[float, str], tuple[float, AttackRow]]:
    """Per noise level and sample the best value of a metric, and the row that reached it.

    Attacks started at the truth are left out: no attacker can run them. So are rows without a value. Choosing
    the best attack with the truth at hand is the auditor's privilege; it bounds what any of them achieves.
    """
    best: dict[tuple[float, str], tuple[float, AttackRow]] = {}
    for row in rows:
        value = row.metrics.get(metric)
        if value is None or row.oracle_start:
            continue
        key = (row.noise_std, row.sample_id)
        if key not in best or (value > best[key][0] if higher_is_better else value < best[key][0]):
            best[key] = (value, row)
    return best
