"""J of uploads as functions of their distinct inputs, for attackers who know which samples are copies of each other.

Copies of one input x are not several unknowns but one. With T, which hands every distinct input y_i to all its copies,
r(T y) has the Jacobian J T, whose block of y_i is the sum of the copies' blocks, whatever their targets are
(docs/theory.md, section 7).
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.jacobian.base import Jacobian
from riskaudit.jacobian.structured import SampleBlocks, UploadJacobian
from riskaudit.linalg import LinearOperator
from riskaudit.release import Batch
from riskaudit.release.copies import first_copies


def of_distinct_inputs(jacobian: Jacobian) -> tuple[Jacobian, list[int]]:
    """J by distinct inputs, itself where no upload has copies, and of each of the U n samples the block that it is in.

    Raises:
        ValueError: uploads with different numbers of distinct inputs.
    """
    batch = jacobian.batch
    firsts = first_copies(batch) if batch.upload_size > 1 else [[0]] * batch.num_uploads
    sizes = {len(set(upload)) for upload in firsts}
    if len(sizes) != 1:
        raise ValueError(f"expected uploads of as many distinct inputs each, found {sorted(sizes)}; take them apart")
    if sizes == {batch.upload_size}:
        return jacobian, list(range(len(batch)))
    distinct = DistinctJacobian(jacobian, firsts)
    return distinct, distinct.owners.flatten().tolist()


@final
class DistinctJacobian(Jacobian):
    """J T of U uploads with m distinct inputs each, [P', m d]; every input stands for all of its copies.

    Args:
        jacobian: J at the uploads, [P', n d].
        firsts: from `first_copies`.

    Attributes:
        owners: the block of each sample among the U m, [U, n].
    """

    def __init__(self, jacobian: Jacobian, firsts: list[list[int]]) -> None:
        whole = jacobian.batch
        order = [sorted(set(upload)) for upload in firsts]
        positions = [index * whole.upload_size + first for index, upload in enumerate(order) for first in upload]
        size = len(order[0])
        super().__init__(
            jacobian.release,
            Batch(
                whole.inputs[positions],
                whole.targets[positions],
                size,
                whole.numbers,
                lengths=None if whole.lengths is None else whole.lengths[positions],
            ),
        )
        self.jacobian, self._firsts = jacobian, firsts
        blocks = [[upload.index(first) for first in row] for upload, row in zip(order, firsts, strict=True)]
        self._blocks = torch.tensor(blocks, device=self.device)
        self.owners = self._blocks + size * torch.arange(len(blocks), device=self.device)[:, None]

    @override
    def select(self, indices: list[int]) -> DistinctJacobian:
        return DistinctJacobian(self.jacobian.select(indices), [self._firsts[index] for index in indices])

    def same_inputs_of(self, jacobian: Jacobian) -> DistinctJacobian:
        """Another J at the same uploads by the same distinct inputs."""
        return DistinctJacobian(jacobian, self._firsts)

    @override
    def mean(self) -> Tensor:
        return self.jacobian.mean()

    @override
    def losses(self) -> Tensor:
        """Of the first copy of every input, [U m]."""
        losses = self.jacobian.losses().reshape(self.num_samples, -1)
        firsts = torch.tensor([sorted(set(upload)) for upload in self._firsts], device=losses.device)
        return losses.gather(1, firsts).flatten()

    @override
    def smallest_eigenvalue_bound(self) -> Tensor:
        """That of J, since |T y| >= |y|."""
        return self.jacobian.smallest_eigenvalue_bound()

    def by_sample(self) -> SummedBlocks | None:
        """The blocks of all distinct inputs by the samples' own layers, where these are known."""
        blocks = self.jacobian.by_sample() if isinstance(self.jacobian, UploadJacobian) else None
        if blocks is None:
            return None
        copies: list[list[int]] = [[] for _ in range(len(self.batch))]
        for sample, owner in enumerate(self.owners.flatten().tolist()):
            copies[owner].append(sample)
        return SummedBlocks(blocks, copies)

    def _handed_out(self, columns: Tensor) -> Tensor:
        """T on columns [U, m d, K]."""
        inputs = columns.reshape(self.num_samples, self.batch.upload_size, -1, columns.shape[2])
        rows = torch.arange(self.num_samples, device=columns.device)[:, None]
        return inputs[rows, self._blocks].reshape(self.num_samples, -1, columns.shape[2])

    def _gathered(self, columns: Tensor) -> Tensor:
        """T^T on columns [U, n d, K]."""
        count, dimension = columns.shape[2], self.shape[1] // self.batch.upload_size
        parts = columns.reshape(-1, dimension, count)
        total = columns.new_zeros(len(self.batch), dimension, count).index_add(0, self.owners.flatten(), parts)
        return total.reshape(self.num_samples, -1, count)

    def _matmat(self, columns: Tensor) -> Tensor:
        return self.jacobian.matmat(self._handed_out(columns))

    def _rmatmat(self, columns: Tensor) -> Tensor:
        return self._gathered(self.jacobian.rmatmat(columns))

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        return self._gathered(self.jacobian.gram_matmat(self._handed_out(columns)))

    def _gram_rows(self, columns: Tensor) -> Tensor:
        return self.jacobian.gram_rows(self._handed_out(columns))


@final
class SummedBlocks(LinearOperator):
    """Sums of the blocks J_j [P', d] of the copies of one input each.

    Args:
        blocks: of all samples.
        copies: for every sum the positions of its samples among them.
    """

    def __init__(self, blocks: SampleBlocks, copies: list[list[int]]) -> None:
        super().__init__(len(copies), blocks.shape, blocks.dtype, blocks.device)
        self.blocks, self.copies = blocks, copies
        self._parts = blocks.select([sample for own in copies for sample in own])
        owners = [row for row, own in enumerate(copies) for _ in own]
        self._owners = torch.tensor(owners, device=blocks.device)

    @override
    def select(self, indices: list[int]) -> SummedBlocks:
        return SummedBlocks(self.blocks, [self.copies[index] for index in indices])

    def smallest_eigenvalue_bound(self) -> Tensor:
        """See `Jacobian.smallest_eigenvalue_bound`; 0 of a sum of several."""
        bound = self._parts.smallest_eigenvalue_bound()
        several = torch.tensor([len(own) > 1 for own in self.copies], device=bound.device)
        first = torch.tensor([sum(map(len, self.copies[:row])) for row in range(len(self.copies))], device=bound.device)
        return torch.where(several, torch.zeros_like(bound[first]), bound[first])

    def _matmat(self, columns: Tensor) -> Tensor:
        return self._summed(self._parts.matmat(columns[self._owners]))

    def _rmatmat(self, columns: Tensor) -> Tensor:
        return self._summed(self._parts.rmatmat(columns[self._owners]))

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        if len(self._owners) == self.num_samples:
            return self._parts.gram_matmat(columns)
        return self._rmatmat(self._matmat(columns))

    def _gram_rows(self, columns: Tensor) -> Tensor:
        return self._matmat(columns).mT

    def _summed(self, parts: Tensor) -> Tensor:
        total = parts.new_zeros(self.num_samples, *parts.shape[1:])
        return total.index_add(0, self._owners, parts)
