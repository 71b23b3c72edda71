"""What decisions and assessments of a guard hold for: this model, this update, these samples of this batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from riskaudit.errors import GuardError
from riskaudit.guard.assessment import Assessment
from riskaudit.guard.ledger import Account
from riskaudit.guard.snapshot import Snapshot
from riskaudit.release import Batch


@dataclass(frozen=True, eq=False)
class Binding:
    """Of one decision or assessment, in the guard's own keeping, whatever is done to the object itself.

    Attributes:
        snapshot: of model and loss.
        update_digest: of what may be sent; empty for an assessment.
        kept: places in the batch of the samples that may go into an update.
        found: what is known of the batch.
    """

    snapshot: Snapshot
    update_digest: str = ""
    kept: tuple[int, ...] = ()
    found: Assessment | None = None

    def part(
        self, inputs: Tensor, targets: Tensor, names: Sequence[object] | None
    ) -> tuple[Tensor, Tensor, Sequence[object] | None]:
        """The part of a batch that an assessment lets into the update.

        Raises:
            GuardError: nothing may, or the batch has another number of samples.
        """
        places = list(self.kept)
        if not places:
            raise GuardError("no sample of this batch may go into an update")
        if max(places) >= len(inputs):
            raise GuardError("the batch isn't the one that was assessed; assess it again")
        if names is not None and len(names) != len(inputs):
            raise GuardError(f"expected {len(inputs)} ids, one per sample, found {len(names)}")
        return inputs[places], targets[places], None if names is None else [names[place] for place in places]

    def known(self, batch: Batch, snapshot: Snapshot) -> Assessment | None:
        """What an assessment says of the samples that it lets into the update.

        Raises:
            GuardError: it is of another model or of other samples.
        """
        if self.found is None:
            return None
        known = self.found.select(self.kept)
        same = torch.equal(known.batch.inputs, batch.inputs) and torch.equal(known.batch.targets, batch.targets)
        if self.snapshot != snapshot or not same:
            raise GuardError("the batch or the model isn't the one that was assessed; assess it again")
        return known


def current(
    known: Assessment | None, ids: list[str], labels: list[int], accounts: dict[str, Account] | None
) -> Assessment | None:
    """What is known, if it holds under these ids.

    Its samples have to count together as they do now, since copies have the numbers of all. With a ledger the ids have
    to be the same, and its sketches in the directions that the ledger has by now.

    Args:
        known: of an assessment.
        ids: of the samples by now.
        labels: by now, the same for samples that are one person's.
        accounts: of a ledger, by id; None without one.
    """
    if known is None or _groups(known.labels) != _groups(labels) or (accounts is not None and known.ids != ids):
        return None
    for place, identifier in enumerate(ids):
        account = None if accounts is None else accounts.get(identifier)
        if account is None:
            continue
        if place not in known.sketches or not np.array_equal(known.sketches[place].directions, account.directions):
            return None
    return replace(known, ids=ids)


def _groups(labels: list[int]) -> list[int]:
    """For every sample the first place with its label: the same for labels that differ in their numbers only."""
    first: dict[int, int] = {}
    return [first.setdefault(label, place) for place, label in enumerate(labels)]
