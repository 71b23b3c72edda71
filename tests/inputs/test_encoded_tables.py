"""Tables by an encoding: what becomes of each cell, what is refused and in which words, and what inference proposes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from input_cases import table
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from table_cases import NUMBERS, rows_of, samples_of, write_encoding, write_table
from torch import nn

from riskaudit.errors import SamplesError, SettingsError
from riskaudit.inputs import Checkpoint, fit_together, infer_encoding, load_loss, load_samples
from riskaudit.tables import TableEncoding, read_encoding, written

ENCODING = """
label = "income"

[columns.age]
kind = "number"
mean = 40
std = 10
missing = "mean"
missing_input = true
unit = "years"

[columns.work]
kind = "category"
categories = ["Private", "Gov"]
missing = "category"

[columns.member]
kind = "boolean"

[columns.notes]
kind = "ignore"
"""
TABLE = [
    ("notes", "age", "work", "member", "income"),
    ("a b", 50, "Gov", "True", 1),
    ("", "?", "Private", "no", 0),
    ("c", 35, "NA", 1, 1),
]


def declared(folder: Path, text: str = ENCODING) -> Path:
    path = folder / "encoding.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_every_kind_of_column(tmp_path: Path, suffix: str) -> None:
    rows = TABLE if suffix == ".csv" else [TABLE[0], *([str(cell) for cell in row] for row in TABLE[1:])]
    path = table(tmp_path / f"t{suffix}", rows)
    samples = load_samples(path, encoding=declared(tmp_path))
    assert samples.inputs.tolist() == [[1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 0, 0], [-0.5, 0, 0, 0, 1, 1]]
    assert samples.inputs.dtype == torch.float64
    assert samples.targets.tolist() == [1, 0, 1]
    encoding = samples.encoding
    assert encoding is not None
    assert encoding.widths() == "age 2, work 3, member 1"
    assert [(each.name, each.position, each.std, each.unit) for each in encoding.numbers] == [("age", 0, 10, "years")]
    assert [(each.name, each.first, each.codes.tolist()) for each in encoding.categories] == [
        ("age (missing)", 1, [[0], [1]]),
        ("work", 2, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("member", 5, [[0], [1]]),
    ]
    # Read by the limit, and of a typed table in its own types.
    assert load_samples(path, encoding=declared(tmp_path), limit=2).inputs.tolist() == samples.inputs[:2].tolist()


def test_typed_cells_of_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "age": pa.array([50.0, None, 35.0]), "work": pa.array(["Gov", "Private", None]).dictionary_encode(),
        "member": pa.array([True, False, True]), "notes": ["a", "b", "c"], "income": ["no", "yes", "no"],
    }  # fmt: skip
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    samples = load_samples(tmp_path / "t.parquet", encoding=declared(tmp_path), limit=2)
    assert samples.inputs.tolist() == [[1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 0, 0]]
    assert samples.class_names == ("no", "yes")


def test_codes_of_categories(tmp_path: Path) -> None:
    entries = {
        "drop_first = true": [[0, 0], [1, 0], [0, 1]],
        'missing = "zeros"': [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]],
        "mean = [0.5, 0.25, 0.25]\nstd = [0.5, 0.5, 2.0]": [[1, -0.5, -0.125], [-1, 1.5, -0.125], [-1, -0.5, 0.375]],
    }
    for entry, codes in entries.items():
        text = f'[columns.c]\nkind = "category"\ncategories = ["a", "b", 3]\n{entry}\n'
        encoding = read_encoding(declared(tmp_path, text))
        assert encoding.categories[0].codes.tolist() == codes
        assert read_encoding(declared(tmp_path, written(encoding))).columns == encoding.columns
        found = load_samples(table(tmp_path / "t.csv", [("c", "y"), (3, 0), ("a", 1)]), encoding=encoding)
        assert found.inputs.tolist() == [codes[2], codes[0]]


def test_one_hot_columns_of_the_table(tmp_path: Path) -> None:
    text = '[columns.work]\nkind = "category"\ncolumns = ["work_a", "work_b"]\n[columns.age]\nkind = "number"\n'
    rows = [("work_a", "age", "work_b", "y"), (1, 7, 0, 0), ("False", 8, "True", 1)]
    samples = load_samples(table(tmp_path / "t.csv", rows), encoding=declared(tmp_path, text))
    assert samples.inputs.tolist() == [[1, 0, 7], [0, 1, 8]]
    for bad in ((1, 7, 1, 0), (0, 7, 0, 0), (0.5, 7, 1, 0)):
        with pytest.raises(SamplesError, match=r"sample 0 in t\.csv has"):
            load_samples(table(tmp_path / "t.csv", [rows[0], bad]), encoding=declared(tmp_path, text))


def test_inference_is_what_scikit_learn_makes_of_it(tmp_path: Path) -> None:
    samples, rows = samples_of(tmp_path), rows_of()
    header, cells = rows[0], np.array(rows[1:], dtype=object)
    columns = {name: cells[:, place] for place, name in enumerate(header)}
    numbers = []
    for name in NUMBERS:
        known = columns[name] != "?"
        values = np.where(known, columns[name], "nan").astype(float)
        scaler = StandardScaler().fit(values[known][:, None])
        numbers.append(np.nan_to_num(scaler.transform(values[:, None])))
    words = []
    for name in ("mean concavity", "mean symmetry"):
        own = sorted(set(columns[name]) - {""})
        order = [*own, ""] if "" in columns[name] else own
        words.append(OneHotEncoder(categories=[order], sparse_output=False).fit_transform(columns[name][:, None]))
    boolean = (columns["is large"] == "true").astype(float)[:, None]
    np.testing.assert_allclose(samples.inputs.numpy(), np.hstack([*numbers, *words, boolean]), atol=1e-12)
    assert samples.class_names == ("benign", "malignant")
    # Inferred from all rows, whatever the audit takes of them.
    assert samples_of(tmp_path, 5).inputs.tolist() == samples.inputs[:5].tolist()


REFUSED_TABLES = {
    "unknown column": ([("a", "y"), (1, 0)], '[columns.sex]\nkind = "boolean"\n[columns.a]\nkind = "number"', "sex"),
    "undeclared column": ([("age", "sex", "y"), (1, 2, 0)], '[columns.age]\nkind = "number"', "the column sex of"),
    "another word": (
        [("c", "y"), ("secret", 0)],
        '[columns.c]\nkind = "category"\ncategories = ["a", "b"]',
        "sample 0 in t.csv has another word in column c",
    ),
    "word for a number": ([("age", "y"), (1, 0), ("secret", 0)], '[columns.age]\nkind = "number"', "sample 1 in t.csv"),
    "no number": ([("age", "y"), (1, 0), ("", 0)], '[columns.age]\nkind = "number"', "`missing`"),
    "no boolean": ([("b", "y"), ("secret", 0)], '[columns.b]\nkind = "boolean"', "true or false"),
    "no label": ([("age", "z"), (1, 0)], 'label = "y"\n[columns.age]\nkind = "number"', "of labels"),
    "the label is an input": ([("age", "y"), (1, 0)], '[columns.y]\nkind = "number"', "would be the label"),
    "two of one name": ([("age", "Age", "y"), (1, 2, 0)], '[columns.age]\nkind = "number"', "two columns of one name"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_TABLES)
def test_refused_tables(tmp_path: Path, refused, case: str) -> None:
    rows, text, expected = REFUSED_TABLES[case]
    message = refused(SamplesError, load_samples, table(tmp_path / "t.csv", rows), encoding=declared(tmp_path, text))
    assert expected in message
    assert "secret" not in message


REFUSED_FILES = {
    "no columns": 'label = "y"',
    "unknown entry": '[columns.a]\nkind = "number"\nmaen = 3',
    "no kind": "[columns.a]\nmean = 3",
    "one category": '[columns.a]\nkind = "category"\ncategories = ["x"]',
    "a category twice": '[columns.a]\nkind = "category"\ncategories = ["x", "x"]',
    "no categories": '[columns.a]\nkind = "category"',
    "no spread": '[columns.a]\nkind = "number"\nmean = 1\nstd = 0',
    "range and mean": '[columns.a]\nkind = "number"\nmean = 1\nlow = 0\nhigh = 2',
    "no mean to fill": '[columns.a]\nkind = "number"\nlow = 0\nhigh = 2\nmissing = "mean"',
    "zeros twice": '[columns.a]\nkind = "category"\ncategories = [1, 2]\ndrop_first = true\nmissing = "zeros"',
    "column twice": '[columns.a]\nkind = "number"\n[columns.b]\nkind = "category"\ncolumns = ["a", "c"]',
    "nothing seen": '[columns.a]\nkind = "ignore"',
    "widths": '[columns.a]\nkind = "category"\ncategories = [1, 2]\nmean = [1, 2, 3]',
}


@pytest.mark.parametrize("case", REFUSED_FILES)
def test_refused_encodings(tmp_path: Path, refused, case: str) -> None:
    assert "encoding.toml" in refused(SettingsError, read_encoding, declared(tmp_path, REFUSED_FILES[case]))


REFUSED_INFERENCES = {
    "all missing": ([("a", "b", "y"), ("", 1, 0), ("?", 2, 1)], "no value in any row"),
    "one value": ([("a", "b", "y"), ("x", 1, 0), ("x", 2, 1)], "one value only"),
    "numbers with words": (
        [("a", "y"), *((f"{n}" if n % 2 else f"secret{n}", 0) for n in range(250))],
        "250 different",
    ),
}


@pytest.mark.parametrize("case", REFUSED_INFERENCES)
def test_refused_inferences(tmp_path: Path, refused, case: str) -> None:
    rows, expected = REFUSED_INFERENCES[case]
    message = refused(SamplesError, infer_encoding, table(tmp_path / "t.csv", rows))
    assert expected in message
    assert "secret" not in message


def test_a_model_of_another_width(tmp_path: Path, refused) -> None:
    samples = samples_of(tmp_path, 3)
    for model in (
        nn.Sequential(nn.Linear(9, 2)),
        nn.Sequential(nn.Unflatten(1, (3, 3)), nn.Flatten(), nn.Linear(9, 2)),
    ):
        checkpoint = Checkpoint.from_model(model.double())
        message = refused(SamplesError, fit_together, checkpoint, samples, load_loss("cross-entropy"))
        assert "cancer.toml makes 14 inputs of cancer.csv (mean radius 1, " in message
        assert "mean concavity 4" in message
    _, same = fit_together(Checkpoint.from_model(nn.Linear(14, 2)), samples, load_loss("cross-entropy"))
    assert same.encoding is samples.encoding


def test_an_encoding_is_for_tables(tmp_path: Path, refused) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3)), y=np.zeros(2, dtype=int))
    refused(SamplesError, load_samples, tmp_path / "x.npz", encoding=declared(tmp_path))
    refused(SamplesError, load_samples, write_table(tmp_path / "t.csv"), encoding=declared(tmp_path), scale=2.0)
    path = write_table(tmp_path / "cancer.csv")
    refused(SettingsError, load_samples, path, encoding=tmp_path / "nowhere.toml")
    assert isinstance(read_encoding(write_encoding(tmp_path / "e.toml", path)), TableEncoding)
