from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from input_cases import table

from riskaudit.errors import SamplesError
from riskaudit.inputs import load_loss, load_samples


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_table(tmp_path: Path, suffix: str) -> None:
    path = table(tmp_path / f"t{suffix}")
    samples = load_samples(path, plain_ids=True)
    assert samples.inputs.tolist() == [[30, 0.5], [41, 1.5], [52, 2.5]]
    assert samples.targets.tolist() == [1, 0, 1]
    assert samples.targets.dtype == torch.int64
    assert samples.ids == ("p1", "p2", "p3")
    assert not samples.are_images
    hidden = load_samples(path, limit=2)
    assert len(hidden) == 2
    assert not set(hidden.ids) & {"p1", "p2"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("name", ["label", "labels", "y", "target", "targets", "Label"])
def test_label_column_by_name(tmp_path: Path, suffix: str, name: str) -> None:
    path = table(tmp_path / f"t{suffix}", [(name, "a", "b"), (1, 2, 3), (0, 5, 6)])
    samples = load_samples(path)
    assert samples.targets.tolist() == [1, 0]
    assert samples.inputs.tolist() == [[2, 3], [5, 6]]
    assert samples.ids == ("0", "1")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_word_labels(tmp_path: Path, refused, suffix: str) -> None:
    rows = [("a", "kind"), (1, "dog"), (2, "cat"), (3, "dog"), (4, "ant")]
    path = table(tmp_path / f"t{suffix}", rows)
    for loss in (None, load_loss("cross-entropy")):
        samples = load_samples(path, loss=loss, limit=2)
        assert samples.class_names == ("ant", "cat", "dog")
        assert samples.targets.tolist() == [2, 1]
    message = refused(SamplesError, load_samples, path, loss=load_loss("mse"))
    assert "label of sample 0" in message
    assert "dog" not in message


def test_regression_targets(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", [("a", "y"), (1, 2), (3, 4)])
    assert load_samples(path, loss=load_loss("mse")).targets.dtype == torch.float64


def test_csv_without_header_and_with_mark(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"1,2,0\n3,4,1\n")
    assert load_samples(tmp_path / "t.csv").targets.tolist() == [0, 1]
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfy,a\r\n1,2\r\n\r\n")
    assert load_samples(tmp_path / "t.csv").targets.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,y\n", "no rows"),
        ("y\n1\n", "features and a label"),
        ("a,a,y\n1,2,3\n", "two columns of one name"),
        ("a,y\n1,2\n3\n", "sample 1 in t.csv has 1 cells"),
        ("a,y\nred,2\n", "has text in column 1"),
        ("a,y\n,2\n", "has nothing in column 1"),
        ("a,y\nnan,2\n", "sample 0 in t.csv holds NaN"),
        ("a,y\n1,2\n1,\n", "sample 1 in t.csv has no label"),
        ('a,y\n"1,2\n', "t.csv"),
        ("a,y\n1,1e999\n", "target"),
    ],
)
def test_broken_csv(tmp_path: Path, refused, text: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert words in refused(SamplesError, load_samples, tmp_path / "t.csv")


def test_csv_not_text(tmp_path: Path, refused) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,y\n\xff\xfe,1\n")
    assert "UTF-8" in refused(SamplesError, load_samples, tmp_path / "t.csv")


def test_parquet_with_words_or_gaps(tmp_path: Path, refused) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"a": ["x"], "y": [1]}), tmp_path / "t.parquet")
    assert "column a" in refused(SamplesError, load_samples, tmp_path / "t.parquet")
    parquet.write_table(pa.table({"a": [1.0, None], "y": [1, 0]}), tmp_path / "t.parquet")
    assert "sample 1" in refused(SamplesError, load_samples, tmp_path / "t.parquet")
    parquet.write_table(
        pa.table({"a": pa.array([], pa.float64()), "y": pa.array([], pa.int64())}), tmp_path / "t.parquet"
    )
    assert "no rows" in refused(SamplesError, load_samples, tmp_path / "t.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, refused, monkeypatch) -> None:
    path = table(tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'pip install "riskaudit[parquet]"' in refused(SamplesError, load_samples, path)
