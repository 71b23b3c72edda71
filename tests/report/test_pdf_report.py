"""The PDF, read back with poppler."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from riskaudit.document.pdf import _gallery, _spacings, covered, to_pdf
from riskaudit.report.build import build_document

needs_poppler = pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext (poppler) is not installed")


@pytest.fixture(scope="module")
def text(rendered, tmp_path_factory):
    """The PDF's text on one line, without the break marks in long words."""

    def get(name):
        path = tmp_path_factory.mktemp("pdf") / "audit.pdf"
        path.write_bytes(rendered(name, "pdf"))
        run = subprocess.run(["pdftotext", "-layout", str(path), "-"], capture_output=True, text=True, check=True)
        return " ".join(run.stdout.replace("\u200b", "").split())

    return get


@pytest.mark.sampled(2)
@needs_poppler
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exceeded", ["Policy exceeded", "What to do next", "This is not differential privacy", "Signature"]),
        ("lanczos", ["Not assessed", "This is not a finding of safety", "needs the whole spectrum"]),
        ("many", ["Only the first 40 of 300 rows are printed", "1 of "]),
        ("failed", ["the loss is not finite", "not converged"]),
        ("shown", ["Private inputs are shown", "picture can't be read"]),
    ],
)
def test_key_sentences(text, name, words):
    content = text(name)
    for expected in words:
        assert expected in content


def test_pictures_of_two_galleries_are_kept_apart(audit, tmp_path):
    galleries = [
        block for section in build_document(audit("attacked-shown")).sections for block in section.blocks
        if block.kind == "gallery"
    ]  # fmt: skip
    paths = [[item["path"] for item in _gallery(gallery, tmp_path)["items"]] for gallery in galleries]
    for gallery, names in zip(galleries, paths, strict=True):
        assert [(tmp_path / name).read_bytes() for name in names] == [picture.png for picture in gallery.items]
    assert len(paths) == 4


@needs_poppler
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["defended", "many", "uploads", "attacked-shown", "lanczos"])
def test_no_page_is_nearly_empty(rendered, tmp_path, name):
    (tmp_path / "audit.pdf").write_bytes(rendered(name, "pdf"))
    command = ["pdftoppm", "-r", "20", "-gray", "-png", str(tmp_path / "audit.pdf"), str(tmp_path / "page")]
    subprocess.run(command, capture_output=True, check=True)
    for path in sorted(tmp_path.glob("page*.png")):
        with Image.open(path) as image:
            ink = np.asarray(image) < 200
        # Between the header and the footer.
        rows = np.flatnonzero(ink[int(0.055 * len(ink)) : int(0.945 * len(ink))].any(axis=1))
        assert (rows[-1] + 1) / (0.89 * len(ink)) >= 1 / 3, path.name


def test_text_and_appendix_are_spaced_apart_until_their_last_pages_are_half_full(monkeypatch, tmp_path):
    tails = {"1": [0.9, 0.3], "0.9": [0.2, 0.4], "1.1": [0.2, 0.6]}
    monkeypatch.setattr(
        "riskaudit.document.pdf.typst.query", lambda *_, sys_inputs, **__: json.dumps(tails[sys_inputs["spacing"]])
    )
    assert _spacings(tmp_path) == {"spacing": "1", "appendix-spacing": "1.1"}
    monkeypatch.setattr("riskaudit.document.pdf.typst.query", lambda *_, **__: "[0.2]")
    assert _spacings(tmp_path) == {"spacing": "1"}


@pytest.mark.slow
@needs_poppler
def test_an_audit_with_attacks_stays_short(rendered, tmp_path):
    path = tmp_path / "audit.pdf"
    path.write_bytes(rendered("attacked-shown", "pdf"))
    info = subprocess.run(["pdfinfo", str(path)], capture_output=True, text=True, check=True).stdout
    assert int(re.search(r"Pages:\s+(\d+)", info).group(1)) <= 13


@needs_poppler
def test_undefended_is_the_first_line(text):
    assert re.match(".{0,20}undefended: assume full disclosure", text("undefended"))


@needs_poppler
def test_hostile_text_is_printed_as_it_is(text):
    content = text("hostile")
    assert '#panic("typst")' in content
    assert "*bold* _it_ @label <label>" in content
    assert "<img src=x onerror=alert(1)>" in content


@needs_poppler
def test_metadata(rendered, tmp_path):
    path = tmp_path / "audit.pdf"
    path.write_bytes(rendered("defended", "pdf"))
    info = subprocess.run(["pdfinfo", "-isodates", str(path)], capture_output=True, text=True, check=True).stdout
    assert re.search(r"Title:\s+Gradient audit of lenet.pt", info)
    assert re.search(r"CreationDate:\s+2026-03-04T10:20:30", info)
    assert "A4" in info
    assert re.search(r"JavaScript:\s+no", info)
    fonts = subprocess.run(["pdffonts", str(path)], capture_output=True, text=True, check=True).stdout.splitlines()[2:]
    assert fonts
    assert all("Libertinus" in font or "NewCM" in font or "DejaVu" in font for font in fonts)


def test_no_link_or_action_in_a_hostile_pdf(rendered):
    for action in (b"/URI", b"/JavaScript", b"/Launch"):
        assert action not in rendered("hostile", "pdf")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["defended", "shown", "attacked-shown"])
def test_the_pdf_conforms_to_pdf_ua(audit, name):
    assert to_pdf(build_document(audit(name)), standards=("ua-1",)).startswith(b"%PDF")


def test_characters_that_the_fonts_lack_are_named():
    assert covered("a漢 é ≈") == "aU+6F22  é ≈"
