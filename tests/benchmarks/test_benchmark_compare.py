"""The comparison of proxies with attacks runs, and its baselines find what they are to find."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest
import torch

from benchmarks import compare
from benchmarks.baselines import DoubleBackprop, largest_by_power
from benchmarks.models import CASES, build_release, load_batch
from benchmarks.tables import Spread, Table, save_json, saved_tables
from benchmarks.timing import take_turns_within

CPU = torch.device("cpu")


@pytest.mark.slow
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


def test_models_that_are_measured_are_not_measured_again(capsys, tmp_path, monkeypatch) -> None:
    file = tmp_path / "compare.json"
    table = Table(
        "tiny, d = 64, made before", {"a": "A", "b": "B"}, [{"a": Spread(2.0, 1.0, 3.0), "b": None}], ["done"]
    )
    save_json(file, "machine", [table])
    monkeypatch.setattr(compare, "compare", lambda case, *_: Table(f"{case.name}, anew", {"a": "A"}, [{"a": 1}]))
    compare.main(["--models", "tiny", "mlp", "--resume", "--json", str(file)])
    assert [each.title for each in saved_tables(file)] == [table.title, "mlp, anew"]
    assert vars(saved_tables(file)[0]) == vars(table)
    assert "2 (1-3)" in capsys.readouterr().out
    compare.main(["--models", "tiny", "--json", str(file)])
    assert [each.title for each in saved_tables(file)] == ["tiny, anew"]
    assert saved_tables(tmp_path / "none") == []


@pytest.mark.slow
def test_rounds_end_with_the_share_of_time() -> None:
    calls = {"slow": 0, "fast": 0}

    def work(name: str, until: float) -> None:
        calls[name] += 1
        start = time.process_time()
        while time.process_time() - start < until:
            pass

    functions = {"slow": partial(work, "slow", 0.02), "fast": partial(work, "fast", 0.0)}
    times = take_turns_within(functions, 3, CPU, 0.01)
    assert calls == {"slow": 1, "fast": 4}
    assert [len(times[name]) for name in functions] == [1, 3]
    assert times["slow"][0] >= 0.02


def test_power_iteration_finds_the_largest_eigenvalue() -> None:
    case = CASES["tiny"]
    release = build_release(case, torch.float64, CPU)
    batch, _ = load_batch(case, 1, [], torch.float64, CPU)
    sample = DoubleBackprop(release, batch.inputs[0], batch.targets[0], cached=False)
    dense = torch.stack([sample.apply(row) for row in torch.eye(64, dtype=torch.float64)])
    value, products = largest_by_power(sample, 1e-8, 500)
    assert value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-4)
    assert 1 < products < 500
