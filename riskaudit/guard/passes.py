"""Why the loss of a sample depends on its batch."""

from __future__ import annotations

from riskaudit.jacobian.choice import is_repeatable
from riskaudit.jacobian.obstacles import AUTOCAST, NOT_DETERMINISTIC, uses_autocast
from riskaudit.release import Batch, Release

COUPLED = (
    "the loss of a sample depends on the other samples of its batch, so a batch's gradient isn't made of its samples'; "
    "train without operations over the whole batch"
)


def coupling_of(release: Release, batch: Batch) -> str:
    """Why a sample has another loss in its batch than alone."""
    if not is_repeatable(release, batch):
        return NOT_DETERMINISTIC
    return AUTOCAST if uses_autocast(release, batch) else COUPLED
