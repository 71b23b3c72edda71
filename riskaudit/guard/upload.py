"""An update that is made inside a ``with`` block, and reviewed when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from riskaudit.errors import GuardError
from riskaudit.guard.batches import HeldBatch
from riskaudit.guard.decision import Decision
from riskaudit.guard.updates import UpdateLike
from riskaudit.release import Batch


class Reviewer(Protocol):
    """What an upload needs of a guard."""

    def review(
        self, batch: Batch | Sequence[Any], update: UpdateLike, *, ids: Sequence[object] | None = None
    ) -> Decision:
        """Decide about an update."""

    def withhold(self, reason: str | BaseException) -> Decision:
        """Withhold an upload of which there is nothing to review."""


@dataclass
class Upload:
    """See `riskaudit.guard.Guard.upload`.

    Attributes:
        guard: that reviews.
        batch: as it was when the block began.
        ids: names of the samples.
        update: to be set inside the block.
        decision: once the block has ended.
    """

    guard: Reviewer
    batch: HeldBatch
    ids: Sequence[object] | None
    update: UpdateLike | None = None
    decision: Decision = field(default_factory=lambda: Decision("block", None, ["the upload isn't complete"]))

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.decision = self.guard.withhold(error)
        elif self.update is None:
            self.decision = self.guard.withhold("no update was handed over")
        else:
            try:
                batch = self.batch.unchanged()
            except GuardError as changed:
                self.decision = self.guard.withhold(str(changed))
            else:
                self.decision = self.guard.review(batch, self.update, ids=self.ids)
