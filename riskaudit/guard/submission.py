"""What is handed in for one review: an update, what it is made of, and whose release it should be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from riskaudit.guard.base_client import BaseClient
from riskaudit.guard.decision import Decision, describe
from riskaudit.guard.updates import UpdateLike
from riskaudit.release import Batch


def _as_it_is(decision: Decision) -> Decision:
    return decision


@dataclass(frozen=True, eq=False)
class Submission:
    """One update with its samples.

    Attributes:
        client: whose release it should be.
        batch: inputs [B, ...] and targets [B, ...].
        update: tensors like the trainable parameters.
        names: of the samples; None where nobody gave any.
        steps_made: whether the release's steps are known to have been made, or noise doesn't hide it.
        finish: makes a decision about this update one about what leaves.
    """

    client: BaseClient
    batch: Batch | Sequence[Any]
    update: UpdateLike
    names: Sequence[object] | None
    steps_made: bool = True
    finish: Callable[[Decision], Decision] = _as_it_is

    def finished(self, decision: Decision) -> Decision:
        """What leaves on the strength of a decision; blocked where that can't be made."""
        try:
            return self.finish(decision)
        except Exception as error:  # what is handed in may be anything
            return decision.withheld([*decision.reasons, describe(error)])
