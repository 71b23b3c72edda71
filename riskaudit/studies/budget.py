"""The time that a study may take, from its beginning to its end: audits first, then attacks until it is used up.

A trial that the end comes upon leaves nothing behind but the word that it was stopped: what half an attack reaches says
neither that a sample is safe nor that it isn't. It isn't in the journal either, so that a resumed study begins it anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from riskaudit.attacks.base import OutOfTimeError
from riskaudit.errors import SettingsError
from riskaudit.linalg import Deadline

# Of the whole, for the audits of all noise levels together; what they leave is the attacks'.
AUDIT_SHARE = 0.5
# What settings take for no time at all.
LEAST_SECONDS = 1e-3


class BudgetUsedUpError(Exception):
    """The budget was used up before a trial's end.

    Attributes:
        key: of the trial that had begun; None where none had.
    """

    def __init__(self, key: str | None) -> None:
        super().__init__(key)
        self.key = key


def now() -> float:
    """Seconds by the monotonic clock, which all processes of a machine share."""
    return time.monotonic()


@dataclass(frozen=True)
class Budget:
    """So many seconds from the start, on the monotonic clock.

    Attributes:
        seconds: None for as long as it takes.
        started: by that clock.
    """

    seconds: float | None = None
    started: float = field(default_factory=now)

    @property
    def deadline(self) -> Deadline | None:
        """Whether it is used up; None without a limit."""
        return None if self.seconds is None else lambda: self.used_up

    @property
    def used_up(self) -> bool:
        """Whether no time is left."""
        return self.seconds is not None and now() - self.started >= self.seconds

    @property
    def left(self) -> float | None:
        """Seconds that are left; None without a limit."""
        return None if self.seconds is None else max(0.0, self.seconds - (now() - self.started))

    def per_audit(self, count: int) -> float | None:
        """Seconds for each of so many audits, above 0; None without a limit."""
        left = self.left
        return None if left is None else max(LEAST_SECONDS, AUDIT_SHARE * left / count)

    def refuse_more(self) -> None:
        """Stop what has no deadline of its own between two of its parts.

        Raises:
            BudgetUsedUpError: no time is left.
        """
        if self.used_up:
            raise BudgetUsedUpError(None)

    @contextmanager
    def of_trial(self, key: str) -> Iterator[None]:
        """Run a trial in the time that is left.

        Raises:
            BudgetUsedUpError: none is left, now or before its end.
        """
        self.refuse_more()
        try:
            yield
        except OutOfTimeError as error:
            raise BudgetUsedUpError(key) from error


UNLIMITED = Budget(started=0.0)


def refuse_budget_of_workers(budget: Budget, workers: int) -> None:
    """With several workers results would depend on how many.

    Raises:
        SettingsError: a budget and several workers.
    """
    if budget.seconds is not None and workers > 1:
        raise SettingsError(
            "with a budget of time results would depend on the workers; leave out `budget`, or use `workers=1`"
        )
