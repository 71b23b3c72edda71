"""J of the entries that a server sees are kept: another mask for every upload, constant in the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.jacobian.base import Jacobian, JacobianFactory
from riskaudit.release import Batch, Release


@final
class KeptJacobian(Jacobian):
    """diag(m) J of B uploads, each [P', n d].

    Args:
        inner: J.
        masks: m, 0 or 1, [B, P'].
    """

    def __init__(self, inner: Jacobian, masks: Tensor) -> None:
        super().__init__(inner.release, inner.batch)
        self.inner, self.masks = inner, masks

    @override
    def select(self, indices: list[int]) -> KeptJacobian:
        return KeptJacobian(self.inner.select(indices), self.masks[indices])

    @override
    def mean(self) -> Tensor:
        return self.masks * self.inner.mean()

    @override
    def losses(self) -> Tensor:
        return self.inner.losses()

    @override
    def smallest_eigenvalue_bound(self) -> Tensor:
        """Zeros: what is left out may be all that bounds it."""
        return torch.zeros(self.num_samples, dtype=torch.float64, device=self.device)

    @override
    def _matmat(self, columns: Tensor) -> Tensor:
        return self.masks[..., None] * self.inner.matmat(columns)

    @override
    def _rmatmat(self, columns: Tensor) -> Tensor:
        return self.inner.rmatmat(self.masks[..., None] * columns)


@final
@dataclass(frozen=True, eq=False)
class KeptJacobians(JacobianFactory):
    """Makes J of the kept entries at batches whose uploads have numbers.

    Attributes:
        inner: makes J.
        masks: by the uploads' numbers, 0 or 1, [P'] each.
    """

    inner: JacobianFactory
    masks: Mapping[int, Tensor]

    @property
    @override
    def release(self) -> Release:  # type: ignore[override]
        return self.inner.release

    @override
    def __call__(self, batch: Batch) -> KeptJacobian:
        assert batch.numbers is not None
        return KeptJacobian(self.inner(batch), torch.stack([self.masks[number] for number in batch.numbers]))

    @override
    def of(self, release: Release) -> KeptJacobians:
        return KeptJacobians(self.inner.of(release), self.masks)
