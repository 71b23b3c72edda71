"""What makes one upload of several samples or of several clients: their mean. Loads without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

from riskaudit.errors import ReleaseError
from riskaudit.formatting import count
from riskaudit.release.arguments import read_count

MEAN, SECURE_AGGREGATION = "mean", "secagg"
ALL = "all"


@final
@dataclass(frozen=True)
class Mean:
    """The mean over consecutive samples.

    Attributes:
        samples: how many; None for all that there are.
    """

    samples: int | None

    @classmethod
    def parse(cls, values: list[str]) -> Self:
        """Read what follows the name.

        Raises:
            ReleaseError: not a count, or not one.
        """
        return cls(None if values == [ALL] else _count(MEAN, "N (or all)", values))

    def __str__(self) -> str:
        return f"{MEAN}:{ALL if self.samples is None else self.samples}"


@final
@dataclass(frozen=True)
class SecureAggregation:
    """The mean over the uploads of several clients, of which the server sees nothing else.

    Attributes:
        clients: how many.
    """

    clients: int

    @classmethod
    def parse(cls, values: list[str]) -> Self:
        """Read what follows the name.

        Raises:
            ReleaseError: not a count above 1, or not one.
        """
        clients = _count(SECURE_AGGREGATION, "K", values)
        if clients == 1:
            raise ReleaseError(
                f"expected {SECURE_AGGREGATION}:K with two clients at least as K, found '1'; leave it out"
            )
        return cls(clients)

    def __str__(self) -> str:
        return f"{SECURE_AGGREGATION}:{self.clients}"


def usages() -> dict[str, str]:
    """How both are written in ``release``, and what they do."""
    return {
        f"{MEAN}:N": "average N samples that follow each other (or all) into one upload",
        f"{SECURE_AGGREGATION}:K": "average the uploads of K clients, which hold equal parts of the data, into one",
    }


def _count(name: str, label: str, values: list[str]) -> int:
    advice = f"write it like {name}:8"
    if len(values) != 1:
        found = count(len(values), "value")
        raise ReleaseError(f"expected {name}:{label[0]}, found {found} after the name; {advice}")
    number = read_count(values[0])
    if number is None:
        condition = f"a whole number above 0 as {label}"
        raise ReleaseError(f"expected {name}:{label[0]} with {condition}, found {values[0]!r}; {advice}")
    return number
