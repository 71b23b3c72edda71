"""Text from files and from other libraries, made fit for one-sentence messages and reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def words(text: str) -> frozenset[str]:
    """The words of a long list in the source."""
    return frozenset(text.split())


def clean(value: object, limit: int = 100) -> str:
    """``value`` as one line: control and direction characters dropped, at most ``limit`` characters."""
    words = " ".join(str(value).split())
    text = "".join(character for character in words if character.isprintable())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listing(values: Iterable[object], limit: int = 4) -> str:
    """The first few of ``values`` in a row, with the count of the rest."""
    items = [clean(value, 50) for value in values]
    shown = ", ".join(items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts names with numbers as a reader would: step 9 before step 10."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def first_problems(problems: Sequence[object]) -> str:
    """The first two of ``problems`` in full, with the count of the rest."""
    shown = "; ".join(clean(problem, 90) for problem in problems[:2])
    return f"{shown} and {len(problems) - 2} more" if len(problems) > 2 else shown


def shape_text(shape: Iterable[int]) -> str:
    """A shape as ``(1, 28, 28)``."""
    return "(" + ", ".join(str(size) for size in shape) + ")"
