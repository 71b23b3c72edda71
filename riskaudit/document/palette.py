"""Colours of figures: placeholders while drawing, CSS variables on screen, fixed colours in print."""

from __future__ import annotations

# Placeholder, CSS variable, colour in print. Hues after Okabe and Ito.
COLOURS = {
    "ink": ("#010203", "--ink", "#1b1f24"),
    "muted": ("#010204", "--muted", "#57606a"),
    "rule": ("#010205", "--rule", "#c9cfd6"),
    "high": ("#010206", "--fig-high", "#c2410c"),
    "medium": ("#010207", "--fig-medium", "#b07d00"),
    "low": ("#010208", "--fig-low", "#0b63b0"),
    "not_assessed": ("#010209", "--muted", "#57606a"),
    "paper": ("#01020a", "--paper", "#ffffff"),
}


def colour(name: str) -> str:
    """The placeholder of a colour, to draw with."""
    return COLOURS[name][0]
