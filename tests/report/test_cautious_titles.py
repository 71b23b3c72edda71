"""Titles and pages that say no more than numbers do."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from report_cases import build
from report_reading import Report

from riskaudit.document.pdf import to_pdf
from riskaudit.report.build import build_document
from riskaudit.report.sections.exposed import _class_title
from riskaudit.results import AuditResult, ClassRow, GroupStatistic


def classes(*intervals: tuple[float, float]) -> list[ClassRow]:
    """Classes "0", "1" and so on with these intervals of their means, the most exposed first."""
    return [
        ClassRow(
            target=place,
            name=str(place),
            num_samples=9,
            proxies={
                "revealed_fraction": GroupStatistic(
                    mean=(low + high) / 2, std=0.1, min=0.0, max=1.0, low=low, high=high, num_samples=9
                )
            },
        )
        for place, (low, high) in enumerate(intervals)
    ]


@pytest.mark.parametrize(
    ("intervals", "said", "unsaid"),
    [
        ([(0.7, 0.8), (0.4, 0.5), (0.1, 0.2)], ["is the most exposed", "the least"], ["leave open"]),
        ([(0.7, 0.8), (0.65, 0.75), (0.1, 0.2)], ["more exposed", "which class is the most$"], ["is the most exp"]),
        ([(0.7, 0.8), (0.1, 0.3), (0.1, 0.2)], ["more exposed", "which class is the least$"], ["is the most exp"]),
        ([(0.7, 0.8), (0.15, 0.75), (0.1, 0.2)], ["the most and the least$"], ["is the most exposed"]),
        ([(0.1, 0.8), (0.4, 0.5), (0.1, 0.2)], ["run from", "tell these two apart"], ["more exposed", "the least"]),
    ],
    ids=["told apart", "two on top", "two at the bottom", "neither", "nothing told apart"],
)
def test_a_class_is_called_the_most_exposed_only_where_intervals_tell_it_from_all_others(intervals, said, unsaid):
    title = _class_title(classes(*intervals), "revealed_fraction", "Revealed fraction")
    assert all(re.search(words, title) for words in said)
    assert not any(words in title for words in unsaid)


def with_least_error(low: float, status: str) -> AuditResult:
    """An audit whose most exposed sample's error is this, or an interval from there on."""
    base = build(4, 2)
    first = base.samples[0]
    high = low if status == "exact" else 0.2
    value = low if status == "exact" else 0.1
    error = first.proxies["posterior_rmse"].model_copy(
        update={"value": value, "low": low, "high": high, "status": status}
    )
    row = first.model_copy(update={"proxies": first.proxies | {"posterior_rmse": error}})
    return base.model_copy(update={"samples": [row, *base.samples[1:]]})


@pytest.mark.parametrize("status", ["exact", "bracketed"])
def test_no_attack_is_said_to_come_to_an_error_of_0(status):
    title = Report.of(with_least_error(0.0, status)).figures["rmse"].title
    assert not re.search("RMSE of 0 ", title)
    assert ("bounded from below by nothing" in title) == (status == "bracketed")
    other = Report.of(with_least_error(1e-9, status)).figures["rmse"].title
    assert "reconstructed to an RMSE of" in other


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext (poppler) is not installed")
def test_the_long_table_of_samples_leaves_no_page_before_it_nearly_empty(tmp_path):
    path = tmp_path / "audit.pdf"
    path.write_bytes(to_pdf(build_document(build(40, 3))))
    text = subprocess.run(["pdftotext", "-layout", str(path), "-"], capture_output=True, text=True, check=True).stdout
    pages = text.split("\f")
    (table,) = [place for place, page in enumerate(pages) if re.search(r"^\s*All 40 audited samples\s*$", page, re.M)]
    assert "Who is exposed" not in pages[table - 1] or "Classes compared" in pages[table - 1]
    (begin,) = [place for place, page in enumerate(pages) if re.search(r"^\s*\d?\s*Who is exposed\s*$", page, re.M)]
    assert begin < table
    assert "Classes compared" in " ".join(pages[begin:table])
