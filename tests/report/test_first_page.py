"""The first page: the scale, examples on public digits, the box to sign; and long tables in the appendix."""

from __future__ import annotations

import numpy as np
import pytest

from riskaudit.document.appendix import MOST_ROWS
from riskaudit.document.blocks import (
    Callout,
    DefinitionList,
    Figure,
    Gallery,
    Paragraph,
    SignOff,
    Table,
    TableLink,
)
from riskaudit.report.build import build_document
from riskaudit.report.sections.scale import DIGITS_MEAN, DIGITS_STD, _digits, estimate
from riskaudit.results.checks import CheckFinding


def of_kind(section, kind):
    return [block for block in section.blocks if isinstance(block, kind)]


def test_the_verdict_has_the_scale_and_the_box_to_sign(audit):
    result = audit("defended")
    verdict = build_document(result).sections[0]
    (figure,) = of_kind(verdict, Figure)
    assert figure.plot.start.value == result.prior.std
    assert figure.plot.end.value == 0
    values = sorted(row.proxies["posterior_rmse"].value for row in result.samples)
    assert sorted(dot.value for dot in figure.plot.dots) == values
    assert len(of_kind(verdict, SignOff)) == 1
    kinds = [block.kind for block in verdict.blocks]
    assert kinds.index("callout") < kinds.index("figure") < kinds.index("signoff")


def test_the_first_page_says_what_its_numbers_mean(audit):
    result = audit("defended")
    first, *_, last = (section for section in build_document(result).sections if section.id != "appendix")
    (meaning,) = [block.text for block in of_kind(first, Paragraph) if block.lead == "In words."]
    thresholds = result.settings.thresholds
    for words in (
        "posterior error",
        "guess from the prior",
        f"above {thresholds.high}",
        f"from {thresholds.medium} on",
    ):
        assert words in meaning
    (box,) = of_kind(first, Callout)
    assert box.facts[0][0] == "Question"
    explained = {term.lower() for block in of_kind(last, DefinitionList) for term, _ in block.items}
    assert explained >= {
        "upload", "release", "prior", "posterior error", "revealed fraction", "rmse", "coordinate", "in the clear",
        "policy", "residual risk", "standard deviation per entry", "exact", "not assessed",
    }  # fmt: skip


def test_the_first_page_names_what_else_is_in_the_clear(audit):
    result = audit("defended")
    labels = CheckFinding(
        id="labels", title="Labels", status="leak", exactness="exact", recovers="labels", sample_ids=["0", "1"]
    )
    (box,) = of_kind(build_document(result.model_copy(update={"checks": [labels]})).sections[0], Callout)
    assert dict(box.facts)["In the clear"].endswith("; besides, labels of 2 (section 3)")
    assert dict(box.facts)["In the clear"].startswith(f"inputs of 0 of {len(result.samples)} samples")


@pytest.mark.parametrize("rmse", [0.02, 0.1, 0.2, DIGITS_STD])
def test_an_example_has_the_error_it_is_said_to_have(rmse):
    # Over the prior and the noise, which are white here.
    inputs = DIGITS_MEAN + DIGITS_STD * np.random.default_rng(1).standard_normal((300, 300))
    error = np.sqrt(np.mean((estimate(inputs, rmse) - inputs) ** 2))
    assert error == pytest.approx(rmse, rel=0.02)


def test_examples_at_the_ends_of_the_scale():
    digit = _digits()[0]
    assert estimate(digit, 0.0) == pytest.approx(digit, abs=1e-12)
    assert np.ptp(estimate(digit, 2 * DIGITS_STD)) == 0


def test_public_digits_are_shown_only_with_private_images(audit):
    result = audit("defended")
    with_image = result.samples[0].model_copy(update={"image_png": "iVBORw0KGgo="})
    data = result.data.model_copy(update={"input_shape": [1, 8, 8], "input_range": [0.0, 1.0]})
    shown = result.model_copy(update={"samples": [with_image, *result.samples[1:]], "data": data})
    assert not of_kind(build_document(result).sections[0], Gallery)
    (gallery,) = of_kind(build_document(shown).sections[0], Gallery)
    assert {picture.words.split(",")[0] for picture in gallery.items} == {"Public MNIST digit"}


def test_long_tables_stand_in_the_appendix(audit):
    document = build_document(audit("many"))
    *body, appendix = document.sections
    assert appendix.id == "appendix"
    links = [block.table.id for section in body for block in section.blocks if isinstance(block, TableLink)]
    figures = [
        block.table.id
        for section in body
        for block in section.blocks
        if isinstance(block, Figure) and block.in_appendix
    ]
    assert "samples" in links
    assert sorted(links + figures) == sorted(table.id for table in appendix.blocks)
    for section in body:
        for table in of_kind(section, Table):
            assert table.folded or min(len(table.rows), table.print_rows or len(table.rows)) <= MOST_ROWS
