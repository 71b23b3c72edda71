"""The numbers in a release's text: how each is called, which values it takes, and how it is read and printed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from riskaudit.errors import ReleaseError
from riskaudit.formatting import count, is_plainly_written


@dataclass(frozen=True)
class Argument:
    """One number after the name of a step or of a noise law.

    Attributes:
        label: its name in usages, e.g. "STD".
        condition: which values are accepted, in words.
        read: the number that a text stands for; None where it stands for none, or for one that isn't accepted.
        example: a text that is accepted.
        optional: whether it may be left out.
    """

    label: str
    condition: str
    read: Callable[[str], float | str | None]
    example: str
    optional: bool = False


def read_number(text: str) -> float | None:
    """A finite number; None where a text isn't one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if is_plainly_written(text) and math.isfinite(value) else None


def _positive(text: str) -> float | None:
    value = read_number(text)
    return value if value is not None and value > 0 else None


def _share(text: str) -> float | None:
    value = read_number(text)
    return value if value is not None and 0 <= value < 1 else None


def _percentage(text: str) -> float | None:
    value = read_number(text)
    return value if value is not None and 0 <= value <= 100 else None


def _seed(text: str) -> int | None:
    # The length comes first: int() refuses thousands of digits with an error of its own.
    is_whole = len(text) <= 19 and text.isascii() and text.isdecimal()
    return int(text) if is_whole and int(text) < 2**63 else None


def positive_number(label: str) -> Argument:
    """A finite number above 0."""
    return Argument(label, f"{label} > 0", _positive, "0.1")


def share_below_one(label: str) -> Argument:
    """A number from 0 to below 1."""
    return Argument(label, f"0 <= {label} < 1", _share, "0.5")


def percentage(label: str) -> Argument:
    """A number from 0 to 100."""
    return Argument(label, f"0 <= {label} <= 100", _percentage, "50")


def optional_text(label: str) -> Argument:
    """A text that isn't empty, which may be left out."""
    return Argument(label, f"{label} that isn't empty", lambda text: text or None, "fc", optional=True)


def pattern(label: str) -> Argument:
    """A text that isn't empty."""
    return Argument(label, f"{label} that isn't empty", lambda text: text or None, "fc.*")


def read_seed(text: str) -> int | None:
    """A whole number from 0 to 2^63 - 1."""
    return _seed(text)


def read_count(text: str) -> int | None:
    """A whole number from 1 to 2^63 - 1."""
    return _seed(text) or None


def optional_seed(label: str) -> Argument:
    """A whole number from 0 to 2^63 - 1, which may be left out."""
    return Argument(label, f"a whole number as {label}", _seed, "0", optional=True)


def usage_of(name: str, arguments: tuple[Argument, ...]) -> str:
    """How a name and its numbers are written, e.g. ``mask:RATIO[:SEED]``."""
    return name + "".join(f"[:{each.label}]" if each.optional else f":{each.label}" for each in arguments)


def read_arguments(name: str, arguments: tuple[Argument, ...], values: list[str]) -> list[float | str]:
    """The numbers (or texts) after a name.

    Args:
        name: of the step or noise law.
        arguments: that it takes.
        values: as text.

    Raises:
        ReleaseError: too few or too many values, or one that isn't accepted.
    """
    usage, required = usage_of(name, arguments), [each for each in arguments if not each.optional]
    advice = f"write it like {':'.join([name, *(each.example for each in required)])}"
    if not len(required) <= len(values) <= len(arguments):
        raise ReleaseError(f"expected {usage}, found {count(len(values), 'value')} after the name; {advice}")
    numbers: list[float | str] = []
    for argument, text in zip(arguments, values, strict=False):
        number = argument.read(text)
        if number is None:
            raise ReleaseError(f"expected {usage} with {argument.condition}, found {text!r}; {advice}")
        numbers.append(number)
    return numbers
