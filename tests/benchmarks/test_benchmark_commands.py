"""Both benchmark commands run end to end and print tables that are Markdown."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from benchmarks import joint, operator, scan, tabular
from benchmarks.memory import Work, peak_memory
from benchmarks.models import CASES, DEFAULT_CASES, build_release, load_batch
from benchmarks.tables import Spread, Table
from benchmarks.timing import median_ratio, take_turns

CPU = torch.device("cpu")
MEGABYTE = 2**20


def assert_markdown(text: str) -> None:
    """Every table has a header, a rule, and rows of as many cells."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    for block in blocks:
        lines = block.splitlines()
        assert re.fullmatch(r"\|(-+\|)+", lines[1])
        assert len({line.count("|") for line in lines}) == 1
        assert len(lines) > 2


@pytest.mark.slow
def test_operator_quick(capsys, tmp_path) -> None:
    operator.main(["--quick", "--json", str(tmp_path / "operator.json")])
    printed = capsys.readouterr().out
    assert_markdown(printed)
    assert "1 thread, torch" in printed
    (table,) = json.loads((tmp_path / "operator.json").read_text())["tables"]
    rows = {row["contestant"]: row for row in table["rows"]}
    assert list(rows) == ["structured", "generic", "textbook", "cached", "rebuilt", "gradient"]
    assert rows["gradient"]["gradients"] == rows["structured"]["ratio"] == 1
    for name in ("generic", "textbook", "cached", "rebuilt"):
        assert rows[name]["difference"] < 1e-5
        assert rows[name]["ratio"] > 0
    assert rows["structured"]["mebibytes"] >= 0


@pytest.mark.slow
def test_joint_quick(capsys, tmp_path) -> None:
    joint.main(["--quick", "--json", str(tmp_path / "joint.json")])
    means, training = json.loads((tmp_path / "joint.json").read_text())["tables"]
    assert "structured" in means["title"]
    assert {row["product"] for row in means["rows"]} >= {"gradient", "structured, J v", "generic, H v"}
    assert [(row["batch"], row["steps"]) for row in training["rows"]] == [(2, 1), (2, 10), (8, 1), (8, 10)]
    assert all(0 < row["push_ratio"] <= 3 for row in training["rows"])
    assert "MiB" in capsys.readouterr().out


@pytest.mark.slow
def test_operator_memory_of_one_contestant(capsys) -> None:
    operator.main(["--quick", "--only", "rebuilt", "--memory"])
    printed = capsys.readouterr().out
    assert_markdown(printed)
    assert "rebuilt" in printed
    assert "structured" not in printed


@pytest.mark.slow
def test_scan_quick(capsys, tmp_path) -> None:
    scan.main(["--quick", "--json", str(tmp_path / "scan.json")])
    assert_markdown(capsys.readouterr().out)
    tables = json.loads((tmp_path / "scan.json").read_text())["tables"]
    assert len(tables) == len(scan.SECTIONS)
    errors = [row["error"] for row in tables[0]["rows"] if "error" in row]
    assert len(errors) == 4
    assert max(errors) < scan.TOLERANCE
    assert tables[1]["rows"][0]["certified"] == "3 of 3"


@pytest.mark.slow
def test_scan_runs_the_sections_asked_for(capsys) -> None:
    scan.main(["--quick", "--sections", "spectrum", "--batch-size", "3"])
    printed = capsys.readouterr().out
    assert printed.count("###") == 1
    assert "Dense spectrum" in printed
    assert "B = 3" in printed


def test_cells() -> None:
    table = Table("t", {"a": "A", "b": "B"}, [{"a": 1234.5, "b": Spread(0.00123, 0.001, 12)}, {"a": 3}])
    assert table.markdown().splitlines()[4:6] == ["| 1234 | 0.00123 (0.001-12) |", "| 3    | -                  |"]


def test_contestants_take_turns() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = take_turns(functions, repeats=3, device=CPU, warm_ups={"a": 2, "b": 0})
    assert calls == ["a", "a", *"ababab"]
    assert [len(values) for values in times.values()] == [3, 3]


def test_ratio_is_taken_round_by_round() -> None:
    # The second round met a machine ten times slower.
    assert median_ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0


def test_inputs_come_from_the_file_that_fits(tmp_path) -> None:
    path = tmp_path / "grey.npz"
    np.savez(path, images=np.full((4, 8, 8), 51, dtype=np.uint8), labels=np.arange(4))
    batch, source = load_batch(CASES["tiny"], 3, [path], torch.float32, CPU)
    assert source == "grey.npz"
    assert batch.inputs.shape == (3, 1, 8, 8)
    torch.testing.assert_close(batch.inputs, torch.full_like(batch.inputs, 0.2))
    batch, source = load_batch(CASES["tiny"], 6, [path], torch.float32, CPU)
    assert source == "grey.npz (4 samples, repeated)"
    assert batch.targets.tolist() == [0, 1, 2, 3, 0, 1]
    batch, source = load_batch(CASES["lenet-32"], 2, [path], torch.float32, CPU)
    assert "random" in source
    assert batch.inputs.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("name", [name for name in DEFAULT_CASES if not CASES[name].needs_cuda])
def test_models_take_their_inputs(name) -> None:
    case = CASES[name]
    release = build_release(case, torch.float32, CPU)
    batch, _ = load_batch(case, 1, [], torch.float32, CPU)
    assert release.model(batch.inputs).shape == (1, case.classes)


def allocate(size: int) -> Work:
    """Touch ``size`` bytes and let go of them."""
    return (lambda: None), (lambda: bytearray(b"1") * size)


def exhaust() -> Work:
    return (lambda: None), (lambda: torch.empty(2**50, dtype=torch.uint8))


@pytest.mark.slow
def test_peak_memory_is_that_of_the_work() -> None:
    peak = peak_memory(allocate, CPU, 64 * MEGABYTE)
    assert peak is not None
    assert 63 * MEGABYTE < peak < 80 * MEGABYTE


@pytest.mark.slow
def test_work_that_does_not_fit_has_no_peak() -> None:
    assert peak_memory(exhaust, CPU) is None


@pytest.mark.slow
def test_tabular_quick(capsys, tmp_path) -> None:
    arguments = ["--quick", "--noise-std", "0.001", "1", "--shown", "1", "--json", str(tmp_path / "tabular.json")]
    tabular.main(arguments)
    assert_markdown(capsys.readouterr().out)
    overall, columns = json.loads((tmp_path / "tabular.json").read_text())["tables"]
    loud, quiet = overall["rows"]
    # Three rows and ten columns: the predicted share of an attacker who knows all else, and such attackers.
    assert abs(loud["predicted"] - loud["known"]) < 0.3
    assert loud["least"] <= loud["predicted"]
    assert loud["predicted"] > quiet["predicted"]
    assert loud["worst"] > quiet["worst"]
    assert len(columns["rows"]) == 30
