"""Numbers and names as words: what reports, the command line and messages share. Knows nothing of audits."""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import UTC, datetime

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_DIRECTION_MARKS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def present_time() -> str:
    """The time in UTC to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def printable(text: str) -> str:
    """``text`` with control, unassigned and direction-changing characters made visible.

    Such characters can't stand in XML, and a direction mark could make a line read otherwise than
    it is.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character == "\n":
        return character
    if character == "\t":
        return " "
    hidden = unicodedata.category(character) in {"Cc", "Cs", "Cn", "Co", "Zl", "Zp"}
    return f"\\u{ord(character):04x}" if hidden or character in _DIRECTION_MARKS else character


def one_line(text: str) -> str:
    """``text`` without line breaks; a space that must not break stays one."""
    return re.sub(r"[ \t\r\n\f\v]+", " ", text).strip()


def short(text: str, length: int = 40) -> str:
    """One line of at most ``length`` characters; the middle goes, since both ends tell files apart."""
    text = one_line(text)
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[-(length - 1 - head) :]}"


def number(value: float) -> str:
    """Three significant digits; powers of ten outside 0.001 to 100 000."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -3 <= exponent < 5:
        return f"{value:,.{max(0, 2 - exponent)}f}"
    mantissa, power = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(power)).translate(_SUPERSCRIPTS)}"


def given(value: float) -> str:
    """A number that somebody set, such as a limit: as many digits as they gave."""
    text = f"{value:.6g}"
    return number(value) if "e" in text else text


def signed(value: float) -> str:
    """Like `number`, with its sign; a real minus sign for readers."""
    return number(0.0) if value == 0 else ("+" if value > 0 else "−") + number(abs(value))


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage; never rounded to all or nothing that it isn't."""
    if 0 < share < 0.001:
        return "under 0.1\u00a0%"
    if 0.999 < share < 1:
        return "over 99.9\u00a0%"
    return f"{100 * share:.0f}\u00a0%" if 0.1 <= share < 0.995 else f"{100 * share:.3g}\u00a0%"


def decibels(revealed: float) -> str:
    """How much better than guessing from the prior: -10 log10(1 - revealed_fraction) in dB."""
    if revealed >= 1:
        return "no error left"
    gain = abs(10 * math.log10(1 - revealed))
    return f"{gain:.1f}\u00a0dB" if gain >= 1 else f"{gain:.2f}\u00a0dB"


def ascii_number(value: float, digits: int = 3) -> str:
    """A number for a command line, rounded *up* so that noise given this way still suffices."""
    if value <= 0:
        return "0"
    scale = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    rounded = f"{value:.{digits}g}"
    return rounded if float(rounded) >= value else f"{math.ceil(value / scale) * scale:.{digits}g}"


def count(amount: int, noun: str, plural: str = "") -> str:
    """An amount with its noun: "1 sample", "8 samples"."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A rough time in the unit that suits it, two significant digits: "45 s", "3.5 min", "12 h"."""
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * length:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} s"


def interval(low: float | None, high: float | None) -> str:
    """An interval, or one end of it, or nothing."""
    if low is not None and high is not None:
        return f"{number(low)} to {number(high)}"
    if low is not None:
        return f"at least {number(low)}"
    return f"at most {number(high)}" if high is not None else ""


def target_text(target: float | list[float] | None, class_names: list[str] | None) -> str:
    """A label: the class's name where there is one, else the value itself."""
    if target is None:
        return "none"
    if isinstance(target, list):
        return short(", ".join(number(part) for part in target[:4]) + (", …" if len(target) > 4 else ""))
    if isinstance(target, int):
        named = class_names is not None and 0 <= target < len(class_names)
        return short(class_names[target]) if class_names is not None and named else str(target)
    return number(target)


def sentence(text: str) -> str:
    """``text`` with a capital first letter and a full stop."""
    text = text.strip()
    return text if not text else text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def correlation(value: float) -> str:
    """A number in [-1, 1] or a difference of two, with a real minus sign."""
    return f"{value:.2f}".replace("-", "−").replace("−0.00", "0.00")


def inside(title: str) -> str:
    """A title inside a sentence; acronyms stay as they are."""
    return title[0].lower() + title[1:] if title[1:2].islower() else title


def is_plainly_written(number: str) -> bool:
    """Whether a text may be read as a number: Python's own readers take 0_01 for 1 and digits of any script."""
    return number.isascii() and "_" not in number
