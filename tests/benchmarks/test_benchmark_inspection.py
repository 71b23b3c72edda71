"""The benchmark of inspections runs end to end: it counts honest models and planted attacks."""

from __future__ import annotations

import json

import cases
import pytest

from benchmarks import inspection

LARGE = cases.LARGE_SETS


@pytest.mark.slow
def test_quick(tmp_path) -> None:
    cases.large_set("mnist_train.npz")
    arguments = ["--networks", "mlp", "--optimisers", "adam", "--scratch", str(tmp_path), "--data", str(LARGE)]
    inspection.main([*arguments, "--quick", "--json", str(tmp_path / "inspection.json")])
    honest, planted = json.loads((tmp_path / "inspection.json").read_text())["tables"]
    # Two epochs: six variants each, the new head beside its model, and the second beside the first.
    assert [(row["samples"], row["count"], row["alarms"]) for row in honest["rows"]] == [(64, 15, 0), (32, 12, 0)]
    assert {(row["flags"], row["failures"]) for row in honest["rows"]} == {("none", 0)}
    rows = {row["attack"]: row for row in planted["rows"]}
    assert rows["imprint"]["flagged"] == rows["imprint"]["count"] == 2
    assert rows["class fishing"]["flagged"] == rows["class fishing"]["count"] == 1
    assert all(row["flagged"] <= row["beside"] <= row["count"] for row in rows.values())
