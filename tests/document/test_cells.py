"""Numbers with their status as table cells."""

from __future__ import annotations

from riskaudit.document import cells
from riskaudit.results import Estimate


def test_a_missing_value_is_a_word():
    for status in cells.STATUS_WORDS:
        cell, word = cells.estimate_cell(Estimate(value=None, status=status)), cells.SHORT_STATUS[status]
        assert cell.sort is None
        assert cell.text in {word, "no value"}
    assert cells.estimate_cell(None).text == "not applicable"


def test_a_value_carries_mark_and_interval():
    cell = cells.estimate_cell(Estimate(value=0.1, low=0.05, high=0.2, status="bracketed"))
    assert (cell.mark, cell.detail) == ("∈", "0.0500 to 0.200")


def test_attacks_that_a_budget_ended_are_counted_apart():
    text = cells.tally(["converged", "not_run", "stopped", "not_run"])
    assert text == "2 not run for lack of time, 1 converged, 1 stopped by the budget"
