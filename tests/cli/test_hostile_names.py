"""Markup, formulas and template code in names are text in every format of a real scan."""

from __future__ import annotations

import csv
import shutil
import subprocess

import numpy as np
import pytest
from scan_cases import CHECKPOINT, DATA, FORMATS, Outcome, outcome_of, save_arrays, words

from riskaudit.cli.app import run

HOSTILE = ["<img src=x onerror=alert(1)>", "=HYPERLINK(1)", "[a](javascript:alert(2)) | `b`", '#panic("x") $y$ *z*']


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Outcome:
    """A real scan with markup in the names of the checkpoint, the data, the classes and the samples."""
    folder = tmp_path_factory.mktemp("hostile")
    checkpoint = folder / "<script>alert(3)<script> {{7*7}}.safetensors"
    checkpoint.write_bytes(CHECKPOINT.read_bytes())
    with np.load(DATA) as demo:
        images, labels = demo["images"][:4], np.arange(4)
    classes = [*HOSTILE, *"456789"]
    data = folder / "<svg onload=alert(4)>.npz"
    save_arrays(data, images=images, labels=labels, class_names=np.array(classes), ids=np.array(HOSTILE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = run(words("--plain-ids", "--quiet", checkpoint=checkpoint, data=data, formats=FORMATS, limit=None))
    assert code == 0
    return outcome_of(code, "", "", folder / "out")


def test_markup_in_html_and_json(hostile) -> None:
    html = (hostile.folder / "audit.html").read_text(encoding="utf-8")
    for raw in ("<img src=x", "<svg onload", "<script>alert(3)"):
        assert raw not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "{{7*7}}" in html
    assert hostile.result.data.class_names[:4] == HOSTILE
    assert [row.id for row in hostile.result.samples] == HOSTILE


def test_markup_in_markdown(hostile) -> None:
    text = (hostile.folder / "audit.md").read_text(encoding="utf-8")
    # The command stands in a code block, where nothing is markup.
    outside = "".join(text.split("```")[::2])
    assert "alert(3)" in outside
    for raw in ("<img", "<script", "<svg", "[a](javascript"):
        assert raw not in outside


def test_formulas_in_csv(hostile) -> None:
    with (hostile.folder / "samples.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == [HOSTILE[0], f"'{HOSTILE[1]}", HOSTILE[2], HOSTILE[3]]
    assert rows[1]["class"] == f"'{HOSTILE[1]}"


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext (poppler) is not installed")
def test_markup_in_pdf(hostile) -> None:
    page = ["pdftotext", str(hostile.folder / "audit.pdf"), "-"]
    text = subprocess.run(page, capture_output=True, text=True, check=True).stdout.replace("\u200b", "")
    flat = "".join(text.split())
    for name in HOSTILE:
        assert "".join(name.split()) in flat
