"""Audits with a directions study: spectrum, errors, layers in section 6, shapes of noise in section 5."""

from __future__ import annotations

import re
from functools import cache

import pytest
from attack_cases import raw_study, with_raw_study
from direction_cases import with_directions
from report_cases import build
from report_hostile import HOSTILE
from report_reading import Report, words

from riskaudit.document.blocks import Figure, Table
from riskaudit.report import FORMATS, render
from riskaudit.studies.directions.section import directions_blocks
from riskaudit.studies.directions.section_shapes import shaping_blocks


@cache
def report_of(**options: bool) -> Report:
    return Report.of(with_directions(build(), **options))


def test_titles_state_the_findings():
    figures = {figure.id: figure for figure in report_of().blocks(Figure, "evidence")}
    assert "decades better" in figures["spectrum"].title
    assert "slope 1.00 (0.990 to 1.01)" in figures["error-over-eigenvalue"].title
    assert re.search("conv1 alone reveals 90 %; 95 % without", words(figures["layers"].title))
    assert all(figure.table.rows for figure in figures.values())


def test_a_slope_that_departs_is_said_so():
    result = with_directions(build())
    study = raw_study(result, "directions")
    study["agreement"][0]["slope"] = 0.6
    result = with_raw_study(result, "directions", study)
    assert "departs from 1 / l" in Report.of(result).figures["error-over-eigenvalue"].title


def test_shapes_stand_in_section_5_with_their_warning():
    (table,) = [table for table in report_of().blocks(Table, "what-would-protect") if table.id == "shaping"]
    assert table.rows[0][0].text == "Isotropic, as released"
    text = report_of().text_of("what-would-protect")
    assert "noise is not safe by itself" in text
    assert "No shape helped" in text
    assert re.search(r"knows the shape reached 0\.0100 .* predicts 0\.0800", text)
    predicted = report_of(attacked=False).text_of("what-would-protect")
    assert re.search(r"water-filled noise .* 6\.67 times", predicted)


def test_what_is_missing_is_said():
    text = report_of(known=False).text
    for item in ("the others are not known", "What each layer reveals: not assessed", "Noise shapes: not assessed"):
        assert item in text
    assert "Directions: not attacked" in report_of(attacked=False).text


def test_without_the_study_nothing_is_said():
    from riskaudit.results.facts import Facts

    assert directions_blocks(Facts(build())) == shaping_blocks(Facts(build())) == []


def test_a_record_of_another_form_is_no_crash():
    result = with_raw_study(build(), "directions", {"norm": "much"})
    assert "Directions: norm" in Report.of(result).text


@pytest.mark.slow
def test_hostile_names_are_escaped():
    result = with_directions(build(3))
    study = raw_study(result, "directions")
    for row, text in zip(study["layers"], HOSTILE, strict=False):
        row["layer"] = text
    study["notes"] = list(HOSTILE)
    result = with_raw_study(result, "directions", study)
    assert b"<script>alert" not in render(result, FORMATS)["audit.html"]
