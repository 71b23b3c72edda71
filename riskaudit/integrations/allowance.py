"""What may leave beside an update: metrics and settings hold private data as easily as weights do.

A number that nobody bounds carries 52 bits of anything, a name or a further record carries a text. So names come from
whoever sets the guard up, counts are whole numbers up to the samples that there are, and metrics are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, final

from riskaudit.errors import GuardError, SettingsError
from riskaudit.formatting import count
from riskaudit.release import Batch

# Names of metrics, with the range that each may have, or without.
Metrics: TypeAlias = Iterable[str] | Mapping[str, tuple[float, float]]
# Of a metric for which no range is given.
USUAL_RANGE = (-1e6, 1e6)
# Significant digits that a metric keeps: about 17 bits, enough for a learning curve.
DIGITS = 5
# Of counts in replies that no batch was handed over for, evaluations say.
MAX_EXAMPLES = 100_000
# Numbers of rounds beyond this are none.
MAX_ROUNDS = 100_000


@final
class Allowance:
    """The numbers that may leave under given names.

    Args:
        counts: names of numbers of examples or steps.
        metrics: names of other numbers, with the range that each may have, or without.
        max_examples: the largest count where no batch was handed over.

    Raises:
        SettingsError: a range or a largest count that is none.
    """

    def __init__(self, counts: Iterable[str], metrics: Metrics = (), max_examples: int = MAX_EXAMPLES) -> None:
        ranges = metrics if isinstance(metrics, Mapping) else dict.fromkeys(metrics, USUAL_RANGE)
        for name, (low, high) in ranges.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise SettingsError(f"expected a range of two finite numbers for {name!r}, found {low} to {high}")
        if not isinstance(max_examples, int) or isinstance(max_examples, bool) or max_examples < 1:
            raise SettingsError(f"expected max_examples of 1 or more, found {max_examples!r}")
        self._counts, self._ranges, self._max_examples = frozenset(counts), dict(ranges), max_examples

    def restrict(self, values: Mapping[str, Any], samples: int | None = None) -> dict[str, Any]:
        """The allowed numbers among ``values``, rounded; others are left out.

        Args:
            values: by name.
            samples: how many were handed over, the most that a count may be; None where none were.

        Raises:
            GuardError: a count that can't be one.
        """
        allowed: dict[str, Any] = {}
        most = self._max_examples if samples is None else samples
        for name in sorted(self._counts & set(values)):
            if not _is_count(values[name], 1, most):
                raise GuardError(
                    f"expected {name} to be a whole number between 1 and the {count(most, 'sample')} there are; it "
                    "could carry anything else otherwise"
                )
            allowed[name] = values[name]
        for name, (low, high) in self._ranges.items():
            value = values.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
                allowed[name] = _rounded(value)
        return allowed


def is_round_number(value: object) -> bool:
    """Whether a header that should be the number of a round, or of rounds, is one."""
    return _is_count(value, 0, MAX_ROUNDS)


def number_of_samples(batch: Batch | Sequence[Any]) -> int:
    """Number of samples in a batch that was reviewed."""
    return len(batch) if isinstance(batch, Batch) else len(batch[0])


def _is_count(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _rounded(value: float) -> float:
    """A number with the digits that a metric keeps; whole numbers stay whole."""
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if isinstance(value, int) else rounded
