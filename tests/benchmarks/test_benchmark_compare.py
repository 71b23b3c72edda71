"""The comparison of proxies with attacks runs, and its baselines find what they are to find."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import compare
from benchmarks.baselines import DoubleBackprop, largest_by_power
from benchmarks.models import CASES, build_release, load_batch

CPU = torch.device("cpu")


def test_compare_quick(capsys, tmp_path) -> None:
    compare.main(["--quick", "--attacks", "gauss-newton", "dlg", "analytic", "--json", str(tmp_path / "compare.json")])
    assert "tiny, d = 64" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "compare.json").read_text())["tables"]
    rows = {row["contestant"]: row for row in table["rows"]}
    assert {compare.WHOLE, compare.DENSE, compare.HEADLINE, compare.LARGEST, "gradient"} <= set(rows)
    assert rows[compare.WHOLE]["whole"] == rows[compare.HEADLINE]["headline"] == rows["gradient"]["gradients"] == 1
    assert rows[compare.DENSE]["products"] == 64
    assert 0 < rows[compare.LARGEST]["products"] < rows[compare.WHOLE]["products"]
    for name in ("gauss-newton", "dlg"):
        low, high, most = rows[f"attack {name}"]["headline, low to most"]
        assert 0 < low < high <= most
    assert "can't be run" in next(name for name in rows if "analytic" in name)


def test_power_iteration_finds_the_largest_eigenvalue() -> None:
    case = CASES["tiny"]
    release = build_release(case, torch.float64, CPU)
    batch, _ = load_batch(case, 1, [], torch.float64, CPU)
    sample = DoubleBackprop(release, batch.inputs[0], batch.targets[0], cached=False)
    dense = torch.stack([sample.apply(row) for row in torch.eye(64, dtype=torch.float64)])
    value, products = largest_by_power(sample, 1e-8, 500)
    assert value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-4)
    assert 1 < products < 500
