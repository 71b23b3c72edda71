"""A large audit keeps its samples in a table, from which it is read as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_cases import audited, create, work_here
from scan_cases import FORMATS

from riskaudit.cli.app import run as command
from riskaudit.errors import ResultError
from riskaudit.report import render
from riskaudit.report.large import render_table
from riskaudit.results import AuditResult, SampleRow, columns
from riskaudit.results.columns import from_parquet, to_parquet
from riskaudit.results.stored import StoredRows

pytest.importorskip("pyarrow", reason="pyarrow is not installed")


@pytest.fixture
def few(monkeypatch) -> None:
    """Let five samples be many."""
    monkeypatch.setattr(columns, "MANY", 5)
    monkeypatch.setattr(columns, "SHOWN", 3)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "options",
    [{}, {"release": "mean:2,gaussian:0.01"}, {"solver": "lanczos", "max_matvecs": 6}, {"proxies": ("gradient_norm",)}],
    ids=["alone", "uploads", "intervals", "norms"],
)
def test_rows_come_back_as_they_were(options, monkeypatch) -> None:
    monkeypatch.setattr(columns, "_GROUP", 4)
    result = audited(**options)
    rows = [row.model_dump(mode="json") for row in result.samples]
    table = to_parquet(result.samples)
    again = from_parquet(table)
    assert again == rows
    assert [list(row["proxies"]) for row in again] == [list(row["proxies"]) for row in rows]
    assert to_parquet(StoredRows(SampleRow, result.samples)) == table


def test_targets_of_every_kind_come_back() -> None:
    rows = [row.model_dump(mode="json") for row in audited(limit=3).samples]
    for row, target in zip(rows, (0.5, [0.25, 1e-300], None), strict=True):
        row["target"] = target
    rows[1]["proxies"] = {}
    assert from_parquet(to_parquet([SampleRow.model_validate(row) for row in rows])) == rows
    assert from_parquet(to_parquet([])) == []


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_merged_audit_beyond_the_limit(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = create(tmp_path / "run")
    work_here(tmp_path / "run")
    out = tmp_path / "out"
    words = ["run", "merge", "run", "--out", "out", "-q"]
    assert command([*words, *(f"--format={name}" for name in FORMATS)]) == 0
    document = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert len(document["samples"]) == 3
    assert document["columns"]["num_samples"] == 6
    (merged,) = run.merge()
    most = sorted(merged.samples, key=lambda row: -row.proxies["revealed_fraction"].value)
    assert [row["id"] for row in document["samples"]] == [row.id for row in most[:3]]
    quantiles = document["columns"]["quantiles"]["revealed_fraction"]
    assert quantiles[-1] == most[0].proxies["revealed_fraction"].value
    assert sum(document["columns"]["verdicts"].values()) == 6
    loaded = AuditResult.load(out / "audit.json")
    assert loaded.samples == merged.samples
    assert loaded.classes == merged.classes
    assert "samples.parquet" in (out / "audit.html").read_text(encoding="utf-8")
    # Rendered again: from all samples, and the file stays as it is.
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert command(["report", "out", "-q"]) == 0
    assert (out / "audit.json").read_bytes() == before["audit.json"]
    assert render(loaded, ["csv"])["samples.csv"] == before["samples.csv"]
    assert command([*words, *(f"--format={name}" for name in FORMATS)]) == 0
    assert (out / "samples.parquet").read_bytes() == before["samples.parquet"]


@pytest.mark.usefixtures("few")
def test_a_part_of_the_samples_is_no_audit(tmp_path) -> None:
    result = audited()
    files = render_table(result)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ResultError, match=r"holds 3 of 6 samples"):
        AuditResult.from_json(files["audit.json"])
    assert AuditResult.load(tmp_path / "audit.json") == result
    table = tmp_path / "samples.parquet"
    table.write_bytes(files["samples.parquet"][:-1])
    with pytest.raises(ResultError, match=r"samples\.parquet isn't what"):
        AuditResult.load(tmp_path / "audit.json")
    table.unlink()
    with pytest.raises(ResultError, match=r"can't read .*samples\.parquet"):
        AuditResult.load(tmp_path / "audit.json")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a table at all"])
def test_what_is_no_table(content) -> None:
    with pytest.raises(ResultError, match=r"samples\.parquet"):
        from_parquet(content)


def test_a_table_of_something_else(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ResultError, match=r"samples\.parquet"):
        from_parquet((tmp_path / "a.parquet").read_bytes())
