"""Nothing of the private inputs is in any output unless it was asked for."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from scan_cases import FORMATS, TEXT_FILES, save_arrays, save_digits, save_images, save_mlp

NAMES = {"cats": ["anna-schmidt.png", "ben-jones.png"], "dogs": ["carla-rossi.png", "dora-novak.png"]}
PEOPLE = [name.split("-")[0] for names in NAMES.values() for name in names]
ALL = {"formats": FORMATS, "limit": None}


@pytest.fixture
def folder_scan(scan, tmp_path):
    """A scan of an image folder whose file names are people's."""
    images = save_images(tmp_path / "faces", NAMES)
    model = save_mlp(tmp_path / "mlp.pt", (16, 8, 2))
    return lambda *options: scan(*options, checkpoint=model, data=images, **ALL)


def test_file_names_are_hidden(folder_scan, tmp_path) -> None:
    outcome = folder_scan()
    assert outcome.code == 0, outcome.err
    told = outcome.text + outcome.out + outcome.err
    for word in (*PEOPLE, ".png", "schmidt", str(tmp_path)):
        assert word not in told
    assert all(word.encode() not in (outcome.folder / "audit.pdf").read_bytes() for word in PEOPLE)
    assert len({row.id for row in outcome.result.samples}) == 4


def test_plain_ids_keep_them(folder_scan) -> None:
    outcome = folder_scan("--plain-ids")
    ids = [row.id for row in outcome.result.samples]
    assert ids == [f"{group}/{name}" for group, names in NAMES.items() for name in names]
    for name in TEXT_FILES:
        assert "anna-schmidt" in (outcome.folder / name).read_text(encoding="utf-8")


def test_table_ids_are_hidden(scan, tmp_path) -> None:
    rows = [["id", "a", "b", "label"], ["patient-4711", "0.5", "1.25", "0"], ["patient-4712", "0.75", "3.5", "1"]]
    (tmp_path / "data.csv").write_text("\n".join(map(",".join, rows)), encoding="utf-8")
    model = save_mlp(tmp_path / "mlp.pt", (2, 8, 2))
    outcome = scan(checkpoint=model, data=tmp_path / "data.csv", **ALL)
    assert outcome.code == 0, outcome.err
    assert "patient" not in outcome.text + outcome.out


def test_pixels_are_nowhere(scan, tmp_path) -> None:
    """This pattern would show up as numbers, as bytes or in base64; the ends of the range are told on purpose."""
    pattern = np.array([0, 255, 101, 149, 193, 241, 17, 89], dtype=np.uint8)
    data = save_digits(tmp_path / "data.npz", images=np.broadcast_to(pattern, (2, 8, 8)).copy())
    outcome = scan(data=data, **ALL)
    told = outcome.text
    assert outcome.code == 0, outcome.err
    for value in pattern[2:].tolist():
        for scaled in (value / 255, np.float32(value / 255)):
            assert repr(float(scaled))[:10] not in told
    assert ", ".join(map(str, pattern[2:5].tolist())) not in told
    assert base64.b64encode(pattern.tobytes()).decode()[:8] not in told
    assert "data:image" not in told
    assert [row.image_png for row in outcome.result.samples] == [None, None]


@pytest.mark.parametrize("channels", [1, 3])
def test_shown_when_asked_for_and_said_first(scan, tmp_path, channels) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, channels, 4, 4), dtype=np.uint8)
    data = save_arrays(tmp_path / "data.npz", images=pixels, labels=np.array([0, 1]))
    model = save_mlp(tmp_path / "mlp.pt", (16 * channels, 8, 2))
    outcome = scan("--show-samples", checkpoint=model, data=data, **ALL)
    assert outcome.code == 0, outcome.err
    for row, image in zip(outcome.result.samples, pixels, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(row.image_png))))
        assert np.array_equal(shown, image[0] if channels == 1 else np.moveaxis(image, 0, 2))
    html = (outcome.folder / "audit.html").read_text(encoding="utf-8")
    # Besides two public digits as they are and at three errors.
    assert html.count("data:image/png") == 2 + 8
    assert html.index("Private inputs are shown") < html.index("<h1")
    assert "Private inputs are shown" in (outcome.folder / "audit.md").read_text(encoding="utf-8")[:800]
    assert "--show-samples" in outcome.result.command


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext (poppler) is not installed")
def test_the_first_page_of_the_pdf_says_so(scan) -> None:
    for options, expected in (((), False), (("--show-samples",), True)):
        outcome = scan(*options, formats=("pdf",))
        page = ["pdftotext", "-l", "1", str(outcome.folder / "audit.pdf"), "-"]
        text = subprocess.run(page, capture_output=True, text=True, check=True).stdout
        assert ("Private inputs are shown" in " ".join(text.split())) == expected


def test_tables_have_no_picture(scan, tmp_path) -> None:
    (tmp_path / "data.csv").write_text("a,b,label\n0.5,1,0\n0.1,0,1\n", encoding="utf-8")
    model = save_mlp(tmp_path / "mlp.pt", (2, 8, 2))
    outcome = scan("--show-samples", checkpoint=model, data=tmp_path / "data.csv")
    assert outcome.code == 0, outcome.err
    assert [row.image_png for row in outcome.result.samples] == [None, None]
