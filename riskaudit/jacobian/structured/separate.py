"""J of samples that are worked out one by one, where a batch of them is another function than each of them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from riskaudit.jacobian.base import Draw, Jacobian
from riskaudit.jacobian.response import StepResponse, joined
from riskaudit.jacobian.structured.operator import StructuredJacobian
from riskaudit.jacobian.structured.signals import Layout
from riskaudit.release import Batch, PerSampleRelease


@final
class SeparateJacobian(Jacobian):
    """J of B samples, each [P, d], every one in a batch of its own, without copies beside it.

    Args:
        release: see `Jacobian`.
        batch: see `Jacobian`.
        layout: of the release's model, from `find_layout`.
    """

    separate = True

    def __init__(self, release: PerSampleRelease, batch: Batch, layout: Layout) -> None:
        super().__init__(release, batch)
        self.release: PerSampleRelease = release
        self.layout = layout
        self._parts = [
            StructuredJacobian(release, batch.select([place]), layout, most_copies=1) for place in range(len(batch))
        ]

    def select(self, indices: list[int]) -> SeparateJacobian:
        """See `Jacobian.select`."""
        return SeparateJacobian(self.release, self.batch.select(indices), self.layout)

    def mean(self) -> Tensor:
        """See `Jacobian.mean`."""
        return torch.cat([part.mean() for part in self._parts])

    def losses(self) -> Tensor:
        """See `Jacobian.losses`."""
        return torch.cat([part.losses() for part in self._parts])

    def smallest_eigenvalue_bound(self) -> Tensor:
        """See `Jacobian.smallest_eigenvalue_bound`."""
        return torch.cat([part.smallest_eigenvalue_bound() for part in self._parts])

    def gradients(self) -> Tensor:
        """The gradient before any step, [B, P]."""
        return torch.cat([part.gradients() for part in self._parts])

    def step(self, direction: Tensor, draw: Draw | None = None, said: Tensor | None = None) -> StepResponse:
        """See `Jacobian.step`."""
        known: Sequence[Tensor | None] = [None] * len(self._parts) if said is None else torch.split(said, 1)
        parts = zip(self._parts, torch.split(direction, 1), known, strict=True)
        return joined([part.step(own, draw, length) for part, own, length in parts])

    def _matmat(self, columns: Tensor) -> Tensor:
        return self._each(StructuredJacobian.matmat, columns)

    def _rmatmat(self, columns: Tensor) -> Tensor:
        return self._each(StructuredJacobian.rmatmat, columns)

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        return self._each(StructuredJacobian.gram_matmat, columns)

    def _gram_rows(self, columns: Tensor) -> Tensor:
        return self._each(StructuredJacobian.gram_rows, columns)

    def _each(self, multiply: Callable[[StructuredJacobian, Tensor], Tensor], columns: Tensor) -> Tensor:
        """Products of every sample with its own columns [B, n, K]."""
        return torch.cat([multiply(part, columns[place : place + 1]) for place, part in enumerate(self._parts)])


def by_layers(
    release: PerSampleRelease, batch: Batch, layout: Layout, alone: Tensor
) -> StructuredJacobian | SeparateJacobian:
    """The samples together where each has the loss that it has alone, else one by one.

    Args:
        release: see `Jacobian`.
        batch: see `Jacobian`.
        layout: of the release's model.
        alone: loss of every sample in a batch of its own, [B].
    """
    together = StructuredJacobian(release, batch, layout, alone)
    return together if together.agrees_with_samples else SeparateJacobian(release, batch, layout)
