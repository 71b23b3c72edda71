"""Audits with a directions study: spectrum, errors, layers in section 6, shapes of noise in section 5."""

from __future__ import annotations

from functools import cache

from attack_cases import raw_study, with_raw_study
from direction_cases import with_directions
from report_cases import build
from report_hostile import HOSTILE

from riskaudit.document.blocks import Figure, Table
from riskaudit.report import FORMATS, render
from riskaudit.report.build import build_document
from riskaudit.studies.directions.section import directions_blocks
from riskaudit.studies.directions.section_shapes import shaping_blocks


def blocks(result, section, kind):
    (found,) = [one for one in build_document(result).sections if one.id == section]
    return {block.id: block for block in found.blocks if isinstance(block, kind)}


@cache
def page_of(**options: bool) -> str:
    return render(with_directions(build(), **options), ("html",))["audit.html"].decode()


def test_titles_state_the_findings():
    figures = blocks(with_directions(build()), "evidence", Figure)
    assert "decades better" in figures["spectrum"].title
    assert "slope 1.00 (0.990 to 1.01)" in figures["error-over-eigenvalue"].title
    assert figures["layers"].title == "The gradient of conv1 alone reveals 90\u00a0%; 95\u00a0% without it"
    assert all(figure.table.rows for figure in figures.values())


def test_a_slope_that_departs_is_said_so():
    result = with_directions(build())
    study = raw_study(result, "directions")
    study["agreement"][0]["slope"] = 0.6
    result = with_raw_study(result, "directions", study)
    assert "departs from 1 / l" in blocks(result, "evidence", Figure)["error-over-eigenvalue"].title


def test_shapes_stand_in_section_5_with_their_warning():
    result = with_directions(build())
    table = blocks(result, "what-would-protect", Table)["shaping"]
    assert table.rows[0][0].text == "Isotropic, as released"
    page = page_of()
    assert "Shaped noise is not safe by itself" in page
    assert "No shape helped against an attacker who knows it." in page
    assert "an attacker who knows the shape reached 0.0100 where first order predicts 0.0800" in page
    predicted = page_of(attacked=False)
    assert "To first order water-filled noise forces 6.67 times the error of isotropic noise." in predicted


def test_what_is_missing_is_said():
    page = page_of(known=False)
    for words in ("the others are not known", "What each layer reveals: not assessed", "Noise shapes: not assessed"):
        assert words in page
    assert "Directions: not attacked" in page_of(attacked=False)


def test_without_the_study_nothing_is_said():
    from riskaudit.results.facts import Facts

    assert directions_blocks(Facts(build())) == shaping_blocks(Facts(build())) == []


def test_a_record_of_another_form_is_no_crash():
    result = with_raw_study(build(), "directions", {"norm": "much"})
    assert "Directions: norm" in render(result, ("html",))["audit.html"].decode()


def test_hostile_names_are_escaped():
    result = with_directions(build(3))
    study = raw_study(result, "directions")
    for row, text in zip(study["layers"], HOSTILE, strict=False):
        row["layer"] = text
    study["notes"] = list(HOSTILE)
    result = with_raw_study(result, "directions", study)
    assert b"<script>alert" not in render(result, FORMATS)["audit.html"]
