"""Parquet files with images in their cells, as data sets of Hugging Face are stored."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from riskaudit.errors import SamplesError
from riskaudit.inputs import load_samples
from riskaudit.inputs.readers import tables

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
PIXELS = np.random.default_rng(0).integers(256, size=(5, 6, 7, 3), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 2]


def encoded(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def written(path: Path, names: Any = None, **columns: Any) -> Path:
    """A file with the metadata that Hugging Face writes."""
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if names is not None:
        features["label"] = {"_type": "ClassLabel", "names": names}
    stored = json.dumps({"info": {"features": features}}).encode()
    parquet.write_table(pa.table(columns).replace_schema_metadata({b"huggingface": stored}), path)
    return path


def cells(images: np.ndarray = PIXELS) -> list[dict[str, Any]]:
    return [{"bytes": encoded(each), "path": f"anna_{place}.png"} for place, each in enumerate(images)]


@pytest.mark.parametrize("plain", [False, True], ids=["struct", "binary"])
def test_pixels_are_those_of_the_files(tmp_path: Path, plain: bool) -> None:
    images = [encoded(each) for each in PIXELS] if plain else cells()
    path = written(tmp_path / "d.parquet", ["ant", "bee", "cat"], image=images, label=LABELS)
    samples = load_samples(path)
    np.testing.assert_array_equal(samples.inputs.numpy(), PIXELS.transpose(0, 3, 1, 2) / 255)
    assert samples.are_images
    assert (samples.targets.tolist(), samples.class_names) == (LABELS, ("ant", "bee", "cat"))
    assert load_samples(path, limit=2, channels=1).inputs.shape == (2, 1, 6, 7)


@pytest.mark.parametrize("names", [None, "abc", ["one"], [1, 2, 3]])
def test_names_that_do_not_fit_the_labels_are_none(tmp_path: Path, names: Any) -> None:
    samples = load_samples(written(tmp_path / "d.parquet", names, image=cells(), label=LABELS))
    assert (samples.targets.tolist(), samples.class_names) == (LABELS, None)


def refused(path: Path, expected: str) -> None:
    with pytest.raises(SamplesError, match=expected) as caught:
        load_samples(path)
    assert "anna" not in str(caught.value)


def test_what_can_not_be_read_is_named_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    elsewhere, damaged, larger = cells(), cells(), cells()
    elsewhere[3]["bytes"] = None
    damaged[1]["bytes"] = damaged[1]["bytes"][:60]
    larger[4]["bytes"] = encoded(np.zeros((9, 7, 3), dtype=np.uint8))
    for content, expected in ((elsewhere, "image 3 .* embedded"), (damaged, "image 1 .*"), (larger, "7x6 and 7x9")):
        refused(written(path, image=content, label=LABELS), expected)
    refused(written(path, image=cells(), other=[1.0] * 5, label=LABELS), "besides them the column other")


def test_row_groups_that_fill_the_memory_are_refused_unread(tmp_path: Path, monkeypatch) -> None:
    path = written(tmp_path / "d.parquet", image=cells(), label=LABELS)
    monkeypatch.setattr(tables, "MAX_INPUT_BYTES", 500)
    monkeypatch.setattr(tables, "read_images", None)
    refused(path, "in one row group")
