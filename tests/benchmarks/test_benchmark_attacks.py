"""The benchmark of attacks runs end to end: a batch at once and one sample at a time give the same inputs."""

from __future__ import annotations

import json

import pytest

from benchmarks import attacks


@pytest.mark.slow
def test_attacks_quick(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    attacks.main(["--quick", "--dtype", "float64", "--device", "cpu", "--json", str(tmp_path / "attacks.json")])
    assert "times faster at once" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "attacks.json").read_text())["tables"]
    assert [row["attack"] for row in table["rows"]] == list(attacks.DEFAULT_ATTACKS)
    for row in table["rows"]:
        assert row["steps"] == attacks.QUICK_STEPS
        assert row["ratio"] > 0
        assert row["difference"] < 1e-6
