"""The levels in the verdict's box: how many samples have each, between which limits, and by which number."""

from __future__ import annotations

import pytest
from report_reading import Report

from riskaudit.report import render


def test_every_level_stands_beside_its_limits(audit):
    result = audit("defended")
    shares = Report.of(result).verdict.shares
    limits = result.settings.thresholds
    assert shares.title == "24 samples by revealed fraction"
    assert [(share.label, share.meaning) for share in shares.items[:3]] == [
        ("high", f"above {limits.high}"),
        ("medium", f"{limits.medium} to {limits.high}"),
        ("low", f"below {limits.medium}"),
    ]
    verdicts = [row.verdict for row in result.samples]
    assert [share.amount for share in shares.items] == [
        verdicts.count(level) for level in ("high", "medium", "low", "not_assessed")
    ]


def test_without_a_defence_high_is_no_matter_of_a_limit(audit):
    (high, *_) = Report.of(audit("undefended")).verdict.shares.items
    assert high.amount == len(audit("undefended").samples)
    assert high.meaning == "all, for want of a defence"


@pytest.mark.parametrize("name", ["defended", "uploads"])
def test_the_box_says_how_its_numbers_are_computed(audit, name):
    box = Report.of(audit(name)).verdict
    explained = dict(box.computed)
    numbers = {label for label, _ in box.facts if label.startswith(("Revealed fraction", "Posterior error"))}
    assert numbers
    assert numbers < set(explained)
    assert "the upper end counts" in explained["Level"]


def test_levels_are_in_every_format(audit):
    audited = audit("defended")
    high = sum(row.verdict == "high" for row in audited.samples)
    assert f"{high} high (above 0.5)" in render(audited, ["md"])["audit.md"].decode()
    assert f"▲ {high} high" in render(audited, ["html"])["audit.html"].decode()
