"""Metrics of texts: by hand, without padding, without what everybody knows, and without their libraries."""

from __future__ import annotations

import importlib

import pytest
import torch

from riskaudit.metrics import Subject, TextVocabulary, make_metrics, measure

NAMES = ("token_accuracy", "rouge1", "rouge2", "rougeL", "bleu", "rmse")
ROWS = torch.eye(8, dtype=torch.float64) + 1.0
KNOWN = torch.tensor([0, 1])


def values(guess: list[int], truth: list[int], padding: int = 0) -> dict[str, float | None]:
    vocabulary = TextVocabulary(ROWS, KNOWN)
    shape = (len(truth) + padding, 8)
    texts = [torch.cat([ROWS[row], torch.zeros(padding, 8, dtype=torch.float64)])[None] for row in (guess, truth)]
    return measure(make_metrics(Subject(shape, texts=vocabulary), NAMES), *texts)[0]


@pytest.mark.parametrize("padding", [0, 3])
def test_values_by_hand(padding: int) -> None:
    """Two of four private tokens, in places that follow each other; the first and the last token are known."""
    found = values([0, 2, 3, 6, 7, 1], [0, 2, 3, 4, 5, 1], padding)
    assert found["token_accuracy"] == 0.5
    assert found["rouge1"] == found["rougeL"] == pytest.approx(0.5)
    assert found["rouge2"] == pytest.approx(1 / 3)
    # Two of six positions are off by two coordinates of eight.
    assert found["rmse"] == pytest.approx((2 * 2 / (6 * 8)) ** 0.5)
    assert 0 < found["bleu"] < 1


def test_order_counts_where_it_should() -> None:
    found = values([5, 4, 3, 2], [2, 3, 4, 5])
    assert (found["token_accuracy"], found["rouge1"], found["rouge2"]) == (0.0, 1.0, 0.0)
    assert found["rougeL"] == 0.25


def test_a_text_of_known_tokens_alone_has_no_value() -> None:
    found = values([0, 5], [0, 1])
    assert found["token_accuracy"] is None
    assert found["rmse"] is not None


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    metrics = make_metrics(Subject((3, 8), texts=TextVocabulary(ROWS, KNOWN)), ["token_accuracy", "rougeL", "bleu"])
    reasons = [metric.reason for metric in metrics]
    assert reasons[0] is None
    assert all("riskaudit[hf]" in reason for reason in reasons[1:])
    assert "rouge-score" in reasons[1]
