"""The benchmark of runs ends, with equal results whatever was killed."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from benchmarks import runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def test_runs_quick(capsys, tmp_path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mnist_test.npz", images=rng.random((4, 28, 28)), labels=np.arange(4))
    runs.main(["--quick", "--data", str(tmp_path), "--json", str(tmp_path / "runs.json")])
    assert "4 samples x 1 checkpoints" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "runs.json").read_text())["tables"]
    assert [row["work"] for row in table["rows"]] == ["1 worker", "2 workers", "2 workers, killed twice"]
    assert [row["result"] for row in table["rows"]] == ["", "equal", "equal"]
    assert all(0 < row["auditing"] <= 1 for row in table["rows"])
    assert all(max(row["early"] or 0, row["end"] or 0) > 100 for row in table["rows"])
    assert all(row["work_seconds"] > 0 for row in table["rows"])
