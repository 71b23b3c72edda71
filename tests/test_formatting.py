"""Numbers and words."""

from __future__ import annotations

import pytest

from riskaudit import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.500"), (-0.25, "-0.250"), (1234.5, "1,234"), (1e-5, "1.00 × 10⁻⁵"), (2e7, "2.00 × 10⁷")],
)
def test_number(value, text):
    assert formatting.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.5"), (0.001, "0.001"), (8, "8"), (1e-7, "1.00 × 10⁻⁷")])
def test_given_keeps_the_digits_that_were_set(value, text):
    assert formatting.given(value) == text


@pytest.mark.parametrize(("share", "text"), [(0.5, "3.0 dB"), (0.1, "0.46 dB"), (0, "0.00 dB"), (1, "no error left")])
def test_decibels(share, text):
    assert formatting.decibels(share).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.426, "43 %"), (0.0005, "under 0.1 %"), (0.9999, "over 99.9 %"), (1, "100 %"), (0, "0 %")]
)
def test_percent(share, text):
    assert formatting.percent(share).replace("\u00a0", " ") == text


@pytest.mark.parametrize("value", [0.016931, 0.0123001, 1.0, 3e-7, 99.999])
def test_noise_for_a_command_is_rounded_up(value):
    assert value <= float(formatting.ascii_number(value)) <= value * 1.011


def test_hidden_characters_become_visible():
    assert formatting.printable("a\x00\u202eb\tc\n") == "a\\u0000\\u202eb c\n"


def test_short_keeps_both_ends():
    assert formatting.short("a" * 30 + "b" * 30, 11) == "aaaaa…bbbbb"
    assert formatting.short(" two\nlines ") == "two lines"
