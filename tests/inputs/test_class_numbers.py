"""Class numbers: those of the data, of the names given in order, or by position where every class is there."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_cases import refusal_of
from PIL import Image
from torch import nn

from riskaudit.errors import SamplesError
from riskaudit.inputs import Checkpoint, Samples, check_compatibility, class_list, load_loss, load_samples

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def folder(root: Path, labels: list[str]) -> Path:
    for label in labels:
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), 7).save(root / label / "x.png")
    return root


def csv_table(root: Path, labels: list[str]) -> Path:
    root.mkdir()
    with (root / "t.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["a", "b", "c", "d", "label"], *([1, 2, 3, 4, label] for label in labels)])
    return root / "t.csv"


def parquet_table(root: Path, labels: list[str]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    root.mkdir()
    features = {name: [1.0] * len(labels) for name in "abcd"}
    parquet.write_table(pa.table({**features, "label": labels}), root / "t.parquet")
    return root / "t.parquet"


def npz_file(root: Path, labels: list[str]) -> Path:
    root.mkdir()
    np.savez(root / "t.npz", x=np.ones((len(labels), 4)), y=np.array(labels))
    return root / "t.npz"


def torch_file(root: Path, labels: list[str]) -> Path:
    root.mkdir()
    torch.save({"x": torch.ones(len(labels), 4), "y": list(labels)}, root / "t.pt")
    return root / "t.pt"


def function(root: Path, labels: list[str]) -> str:
    root.mkdir()
    (root / "d.py").write_text(f"import torch\ndef data(): return torch.ones({len(labels)}, 4), {labels!r}\n")
    return f"{root / 'd.py'}:data"


SOURCES: dict[str, Callable[[Path, list[str]], Path | str]] = {
    "folder": folder, "csv": csv_table, "parquet": parquet_table, "npz": npz_file, "pt": torch_file,
    "function": function,
}  # fmt: skip


@pytest.fixture(params=SOURCES)
def source(request, tmp_path) -> Callable[[list[str]], Path | str]:
    return lambda labels: SOURCES[request.param](tmp_path / "source", labels)


def compatible(samples: Samples, outputs: int, loss: str = "cross-entropy") -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, outputs))
    check_compatibility(Checkpoint.from_model(model), samples, load_loss(loss))


def test_some_of_the_classes_need_all_their_names(source, refused) -> None:
    place = source(["cat", "dog"])
    samples = load_samples(place)
    message = refused(SamplesError, compatible, samples, 10)
    assert "names 2 classes, but the model has 10" in message
    assert "cat" not in message
    assert "`classes" in message
    named = load_samples(place, classes=TEN)
    assert named.targets.tolist() == [3, 5]
    compatible(named, 10)
    assert "9" not in refused(SamplesError, compatible, named, 11)
    compatible(samples, 2)


def test_an_unknown_name_is_told_by_its_row(source, refused) -> None:
    message = refused(SamplesError, load_samples, source(["cat", "zebra"]), classes=TEN)
    assert "1 in" in message
    assert "zebra" not in message
    assert "none of the 10 names in `classes`" in message


def test_numbers_are_class_numbers(tmp_path) -> None:
    samples = load_samples(folder(tmp_path / "f", ["3", "05", "10"]))
    assert sorted(samples.targets.tolist()) == [3, 5, 10]
    assert (samples.class_names, samples.numbering) == (None, "numbers")
    compatible(samples, 11)
    for name, make in SOURCES.items():
        if name != "folder":
            assert load_samples(make(tmp_path / name, ["3", "5"])).targets.tolist() == [3, 5], name


def test_numbers_from_one(source, refused) -> None:
    place = source(["1", "2", "3"])
    message = refused(SamplesError, compatible, load_samples(place), 3)
    assert "first class is called 1, give `classes=1,2,3`" in message
    samples = load_samples(place, classes=class_list("1,2,3"))
    assert samples.targets.tolist() == [0, 1, 2]
    compatible(samples, 3)


def test_stored_numbers_from_one_follow_the_names_too(tmp_path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((3, 4)), y=np.array([[1], [3], [2]], dtype=np.uint8))
    assert load_samples(tmp_path / "d.npz", classes=["1", "2", "3"]).targets.tolist() == [0, 2, 1]
    named = load_samples(tmp_path / "d.npz", classes=["a", "b", "c", "d"], loss=load_loss("cross-entropy"))
    assert (named.targets.tolist(), named.class_names) == ([1, 3, 2], ("a", "b", "c", "d"))


def test_two_folders_of_one_number(tmp_path, refused) -> None:
    assert "one number" in refused(SamplesError, load_samples, folder(tmp_path / "f", ["1", "01"]))


def test_empty_folders_are_classes_where_the_model_says_so(tmp_path) -> None:
    root = folder(tmp_path / "f", ["b", "c"])
    (root / "a").mkdir()
    two = load_samples(root, num_classes=2)
    assert two.targets.tolist() == [0, 1]
    compatible(two, 2)
    three = load_samples(root, num_classes=3)
    assert three.targets.tolist() == [1, 2]
    compatible(three, 3)


def test_eleven_numbered_folders_say_what_imagefolder_does(tmp_path) -> None:
    names = [str(number) for number in range(11)]
    samples = load_samples(folder(tmp_path / "f", names))
    assert samples.targets.tolist() == [0, 1, 10, *range(2, 10)]
    assert any("ImageFolder" in note for note in samples.notes)
    ordered = load_samples(tmp_path / "f", classes=sorted(names))
    assert ordered.targets.tolist() == list(range(11))
    assert not load_samples(folder(tmp_path / "g", names[:10])).notes


@pytest.mark.parametrize(("outputs", "loss"), [(1, "bce"), (2, "cross-entropy")])
def test_two_words_for_two_classes(tmp_path, refused, outputs, loss) -> None:
    samples = load_samples(folder(tmp_path / "f", ["no", "yes"]))
    compatible(samples, outputs, loss)
    one = load_samples(folder(tmp_path / "g", ["yes"]))
    assert "`classes" in refused(SamplesError, compatible, one, outputs, loss)


def test_a_limit_changes_no_number(source) -> None:
    place = source(["dog", "cat", "dog", "ant"])
    numbers = {"dog": 2, "cat": 1, "ant": 0}
    order = ["ant", "cat"] if isinstance(place, Path) and place.is_dir() else ["dog", "cat"]
    assert load_samples(place, limit=2).targets.tolist() == [numbers[word] for word in order]


def test_class_list(tmp_path, refused) -> None:
    (tmp_path / "names.txt").write_text("﻿a, b\n\n c\n", encoding="utf-8")
    assert class_list(str(tmp_path / "names.txt")) == ("a, b", "c")
    assert class_list(" a, b ,c") == ("a", "b", "c")
    assert "found none" in refused(SamplesError, class_list, " , ")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    assert "bad.txt" in refused(SamplesError, class_list, str(tmp_path / "bad.txt"))
    assert "twice" in refused(SamplesError, load_samples, tmp_path, classes=["a", "a"])


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\0"), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, min_size=1, max_size=5), outputs=st.integers(1, 6), number=st.uuids())
def test_random_tables_are_right_or_refused(tmp_path_factory, words, outputs, number) -> None:
    """A label has the number of its name among the model's classes, or its own, or there is one sentence."""
    place = csv_table(tmp_path_factory.mktemp(str(number)) / "t", words)
    stripped = [word.strip() for word in words]
    classes = sorted({*stripped, *"vwxyz"})[:]
    samples, message = refusal_of(load_samples, place)
    if samples is not None:
        _, message = refusal_of(compatible, samples, outputs)
    # Words of plain letters may be parts of the sentence itself; test_private_messages.py tells those apart.
    assert not any(word in message for word in stripped if not word.isascii())
    if not message:
        numbers = [float(value) for value in samples.targets.tolist()]
        if samples.numbering == "position":
            assert sorted(set(stripped)) == [*samples.class_names] or any(not w.isprintable() for w in stripped)
            assert len(set(stripped)) == max(outputs, 2)
        else:
            assert numbers == [float(word) for word in stripped]
    if all(stripped):
        named = load_samples(place, classes=classes)
        assert [classes[target] for target in named.targets.tolist()] == stripped
