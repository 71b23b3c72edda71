"""A large merge goes through its rows on disk: what it says is what it says of rows in memory, to the last byte."""

from __future__ import annotations

import gc

import pytest
from run_cases import audited, create, work_here
from scan_cases import FORMATS

from riskaudit.report import render
from riskaudit.results import AuditResult, SampleRow, columns
from riskaudit.results.stored import StoredRows, kept_as
from riskaudit.runs.folder import RunFolder
from riskaudit.runs.manifest import Unit
from riskaudit.runs.run import Run


@pytest.fixture
def rows() -> list[SampleRow]:
    return list(audited(5).samples)


def test_stored_rows_are_a_sequence(rows: list[SampleRow]) -> None:
    stored = StoredRows(SampleRow, rows[:3])
    stored += rows[3:]
    assert len(stored) == 5
    assert stored == rows == stored
    assert stored != rows[:4]
    assert stored != [*rows[:4], rows[0]]
    assert (stored[0], stored[-1], stored[1:4], stored[::-2]) == (rows[0], rows[4], rows[1:4], rows[::-2])
    assert [(a.id, b.id) for a in stored for b in stored] == [(a.id, b.id) for a in rows for b in rows]
    with pytest.raises(IndexError):
        stored[5]
    assert list(StoredRows(SampleRow)) == []


def test_changed_rows_stay_where_they_are(rows: list[SampleRow]) -> None:
    changed = kept_as(StoredRows(SampleRow, rows), (row.model_copy(update={"loss": 0.5}) for row in rows))
    assert isinstance(changed, StoredRows)
    assert {row.loss for row in changed} == {0.5}
    assert isinstance(kept_as(rows, rows), list)


def test_results_hold_them_as_they_are() -> None:
    result = audited(3)
    stored = result.model_copy(update={"samples": StoredRows(SampleRow, result.samples)})
    assert AuditResult.model_validate({**dict(stored), "samples": stored.samples}).samples is stored.samples
    assert stored == result
    assert stored.to_json() == result.to_json()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"solver": "lanczos", "max_matvecs": 6}, marks=pytest.mark.slow),
        {"release": "mean:2,gaussian:0.01"},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"release": "gradient"}, marks=pytest.mark.slow),
    ],
    ids=["intervals", "uploads", "exact", "undefended"],
)
def test_a_streamed_merge_says_the_same(options, tmp_path, monkeypatch) -> None:
    run = create(tmp_path / "run", **options)
    work_here(tmp_path / "run")
    (whole,) = run.merge()
    with monkeypatch.context() as small:
        small.setattr(columns, "MANY", 5)
        (streamed,) = run.merge()
    assert isinstance(streamed.samples, StoredRows)
    assert streamed.to_json() == whole.to_json()
    # The PDF is the page typeset again.
    formats = [name for name in FORMATS if name != "pdf"]
    assert render(streamed, formats) == render(whole, formats)


def test_a_part_of_a_large_run(tmp_path, monkeypatch) -> None:
    run = create(tmp_path / "run")
    work_here(tmp_path / "run", only=1)
    (whole,) = run.merge(partial=True)
    monkeypatch.setattr(columns, "MANY", 5)
    (streamed,) = run.merge(partial=True)
    assert streamed == whole
    assert streamed.data.num_unaudited == 4


@pytest.mark.slow
def test_few_rows_are_in_memory_at_once(tmp_path, monkeypatch) -> None:
    """With a shard for every sample, and rows read one by one."""
    create(tmp_path / "run", limit=6, shard=1, solver="lanczos", proxies=("revealed_fraction",), checks=False)
    work_here(tmp_path / "run")
    monkeypatch.setattr(columns, "MANY", 5)
    monkeypatch.setattr("riskaudit.results.stored._BLOCK", 1)
    monkeypatch.setattr("riskaudit.results.facts.MOST_LISTED", 2)
    monkeypatch.setattr(columns, "SHOWN", 2)
    most, original = 0, RunFolder.open(tmp_path / "run").store.__class__.read

    def rows_in_memory() -> int:
        gc.collect()
        return sum(type(each) is SampleRow for each in gc.get_objects())

    # Other tests keep rows of their own.
    others = rows_in_memory()

    def read(store: object, unit: Unit) -> object:
        nonlocal most
        if unit.number == 5:
            most = max(most, rows_in_memory() - others)
        return original(store, unit)

    monkeypatch.setattr("riskaudit.runs.store.ShardStore.read", read)
    (merged,) = Run(tmp_path / "run").merge()
    assert len(merged.samples) == 6
    assert 0 < most <= 3
