"""What is handed in for one review: an update, what it is made of, and whose release it should be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from riskaudit.guard.base_client import BaseClient
from riskaudit.guard.decision import Decision
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
        finish: makes a decision about this update one about what leaves.
    """

    client: BaseClient
    batch: Batch | Sequence[Any]
    update: UpdateLike
    names: Sequence[object] | None
    finish: Callable[[Decision], Decision] = _as_it_is
