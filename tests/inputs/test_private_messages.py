"""Random folders and small broken tables: samples or one sentence, and no name or cell in it."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_cases import refusal_of
from PIL import Image

from riskaudit.errors import SamplesError
from riskaudit.inputs import load_samples

SECRET = "Zyx{}qWv"
NAME = st.one_of(
    st.sampled_from(["0", "1", "07", "12", ".hidden", "Ünï-кот", "a b", "x\ny", "\x1b[31m", "名前", "-", "%s", "~"]),
    st.integers(0, 99).map(SECRET.format),
)
ENTRY = st.sampled_from(
    ["image", "other size", "colour", "text", "empty", "truncated", "nested", "link in", "link out", "hidden", "gif"]
)
FOLDERS = st.dictionaries(NAME, st.lists(ENTRY, max_size=4), max_size=4)


def picture(path: Path, mode: str = "L", size=(4, 4)) -> None:
    Image.new(mode, size, 9 if mode == "L" else (9, 8, 7)).save(path, format="PNG")


def put(place: Path, entry: str, number: int, root: Path) -> None:
    file = place / f"{SECRET.format(number)}.png"
    if entry == "image":
        picture(file)
    elif entry == "other size":
        picture(file, size=(5, 4))
    elif entry == "colour":
        picture(file, "RGB")
    elif entry == "text":
        file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    elif entry == "empty":
        file.touch()
    elif entry == "truncated":
        picture(file)
        file.write_bytes(file.read_bytes()[:45])
    elif entry == "nested":
        (place / SECRET.format(number)).mkdir()
        picture(place / SECRET.format(number) / "x.png")
    elif entry == "hidden":
        picture(place / f".{SECRET.format(number)}.png")
    elif entry == "gif":
        frames = [Image.new("L", (4, 4), shade) for shade in (1, 2)]
        frames[0].save(file.with_suffix(".gif"), save_all=True, append_images=frames[1:])
    elif entry == "link in":
        picture(place / "zz.png")
        file.symlink_to(place / "zz.png")
    else:
        picture(root.parent / "outside.png")
        file.symlink_to(root.parent / "outside.png")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(folders=FOLDERS, channels=st.sampled_from([None, 1, 3]), limit=st.sampled_from([None, 1, 2]), number=st.uuids())
def test_random_folders(tmp_path_factory, folders, channels, limit, number) -> None:
    root = tmp_path_factory.mktemp(str(number)) / "data"
    root.mkdir()
    for name, entries in folders.items():
        (root / name).mkdir()
        for position, entry in enumerate(entries):
            put(root / name, entry, position, root)
    samples, message = refusal_of(load_samples, root, channels=channels, limit=limit)
    assert re.search("Zyx|Ünï|名前|outside", message) is None
    if samples is None:
        return
    assert not any("Zyx" in text for text in (*samples.ids, *(samples.class_names or ()), *samples.notes))
    # Every sample has the number of its folder: its own, or its place among all the folders.
    plain = load_samples(root, channels=channels, limit=limit, plain_ids=True)
    visible = sorted(name for name in folders if not name.startswith("."))
    numeric = all(name.isdecimal() for name in visible)
    expected = [int(name) if numeric else place for place, name in enumerate(visible)]
    number_of = {" ".join(name.split()): number for name, number in zip(visible, expected, strict=True)}
    for identifier, target in zip(plain.ids, plain.targets.tolist(), strict=True):
        owner = identifier.rpartition("/")[0]
        if owner.isprintable() and owner in number_of:
            assert number_of[owner] == target
    assert plain.targets.tolist() == samples.targets.tolist()


CELL = st.one_of(
    st.sampled_from(["", " ", "1", "0.5", "nan", "1e999", "True", "x\ny", '"', "-"]),
    st.integers(0, 99).map(SECRET.format),
    st.floats(allow_nan=False).map(str),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(CELL, min_size=1, max_size=4), min_size=1, max_size=5), number=st.uuids())
def test_random_tables(tmp_path_factory, rows, number) -> None:
    """The first line may be a sample as well, so not even the names of columns are told."""
    path = tmp_path_factory.mktemp(str(number)) / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    _, message = refusal_of(load_samples, path)
    assert "Zyx" not in message
    assert not any(cell in message for row in rows for cell in row if len(cell) > 5)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("where", ["feature", "label of a regression", "header"])
def test_cells_of_tables(tmp_path, refused, suffix, where) -> None:
    from input_cases import table

    from riskaudit.inputs import load_loss

    if where == "header" and suffix == ".parquet":
        pytest.skip("parquet has no first line")
    rows = {
        "feature": [("a", "y"), (1.5, 0), ("Private", 1)],
        "label of a regression": [("a", "y"), (1.5, "Private"), (2.5, "Private")],
        "header": [("39", "Private", "Private"), ("40", "b", "c")],
    }[where]
    message = refused(SamplesError, load_samples, table(tmp_path / f"t{suffix}", rows), loss=load_loss("mse"))
    assert "Private" not in message


def test_a_label_far_outside_is_not_shown(refused) -> None:
    import torch
    from torch import nn

    from riskaudit.inputs import Checkpoint, Samples, check_compatibility, load_loss

    model = Checkpoint.from_model(nn.Linear(2, 3))
    for label in (4711, -4711):
        samples = Samples.from_tensors(torch.ones(2, 2), torch.tensor([0, label]))
        message = refused(SamplesError, check_compatibility, model, samples, load_loss("cross-entropy"))
        assert "sample 1" in message
        assert "4711" not in message


def test_groups(tmp_path, refused) -> None:
    from riskaudit.studies.fairness.run import read_groups

    for content in ("anna,east\n", "id,group\nanna\n", "id,group\nanna,a\nanna,b\n"):
        (tmp_path / "g.csv").write_text(content)
        assert "anna" not in refused(SamplesError, read_groups, tmp_path / "g.csv")


# Formats that start other programs, or draw


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n",
        b"%PDF-1.4\n%%EOF\n",
        b"\xd7\xcd\xc6\x9a" + bytes(80),
        b"\x01\x00\x00\x00" + bytes(36) + b" EMF" + bytes(60),
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
        b'/* XPM */\nstatic char *x[] = {"1 1 1 1","a c #000","a"};\n',
    ],
    ids=["eps", "pdf", "wmf", "emf", "fpx", "xpm"],
)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif"])
def test_other_formats_under_an_image_s_name(tmp_path, refused, monkeypatch, content, suffix) -> None:
    import subprocess

    def forbidden(*_arguments, **_options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr(os, "system", forbidden)
    (tmp_path / "f" / "a").mkdir(parents=True)
    (tmp_path / "f" / "a" / f"x{suffix}").write_bytes(content)
    assert "isn't an image that can be read" in refused(SamplesError, load_samples, tmp_path / "f")


def test_formats_are_those_of_the_list() -> None:
    from riskaudit.inputs.readers.image_files import FORMATS

    Image.init()
    assert not set(FORMATS) & {"EPS", "PS", "PDF", "WMF", "FPX", "MIC", "PSD", "GBR", "IPTC", "MPEG", "HDF5"}
    assert set(FORMATS) <= set(Image.OPEN)


def test_several_frames_are_said(tmp_path) -> None:
    (tmp_path / "f" / "0").mkdir(parents=True)
    frames = [Image.fromarray(np.full((4, 4), shade, dtype=np.uint8)) for shade in (51, 255)]
    for name in ("a.gif", "b.tif", "c.png"):
        frames[0].save(tmp_path / "f" / "0" / name, save_all=True, append_images=frames[1:])
    samples = load_samples(tmp_path / "f", channels=1)
    assert samples.notes == ("3 of 3 image files hold several frames or pages, of which the first is audited",)
    assert np.allclose(samples.inputs, 0.2)
