"""J of one sample at a time where several leave together: what an attacker faces who knows all others.

Where the samples' own layers give it, a product takes one pass over the samples asked for (`SampleBlocks`); elsewhere
one through their whole uploads for each. Of a `DistinctJacobian` a "sample" is an input with all its copies.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.jacobian.base import Jacobian
from riskaudit.jacobian.distinct import DistinctJacobian, SummedBlocks
from riskaudit.jacobian.structured import SampleBlocks, UploadJacobian
from riskaudit.release import Batch


@final
class InformedJacobian(Jacobian):
    """The blocks J_j [P', d] of the Jacobians [P', n d] of U uploads; B of them, in any order.

    Args:
        jacobian: at the uploads.
        samples: positions among the U n samples; all of them if not given.
        blocks: products with these blocks by the samples' own layers, where some are known.
    """

    def __init__(
        self, jacobian: Jacobian, samples: list[int] | None = None, blocks: SampleBlocks | SummedBlocks | None = None
    ) -> None:
        self.samples = list(range(len(jacobian.batch))) if samples is None else samples
        whole = jacobian.batch
        lengths = None if whole.lengths is None else whole.lengths[self.samples]
        super().__init__(
            jacobian.release, Batch(whole.inputs[self.samples], whole.targets[self.samples], lengths=lengths)
        )
        self.jacobian = jacobian
        self._blocks = blocks
        if blocks is None and samples is None and isinstance(jacobian, UploadJacobian | DistinctJacobian):
            self._blocks = jacobian.by_sample()
        self._uploads: dict[int, Jacobian] = {}

    @override
    def select(self, indices: list[int]) -> InformedJacobian:
        blocks = None if self._blocks is None else self._blocks.select(indices)
        part = InformedJacobian(self.jacobian, [self.samples[index] for index in indices], blocks)
        part._uploads = self._uploads
        return part

    @override
    def mean(self) -> Tensor:
        return self.jacobian.mean()[[sample // self._size for sample in self.samples]]

    @override
    def losses(self) -> Tensor:
        return self.jacobian.losses()[self.samples]

    @override
    def smallest_eigenvalue_bound(self) -> Tensor:
        """That of the whole upload's, which no block is below, where nothing is known of the samples' own."""
        if self._blocks is not None:
            return self._blocks.smallest_eigenvalue_bound()
        return self.jacobian.smallest_eigenvalue_bound()[[sample // self._size for sample in self.samples]]

    @property
    @override
    def passes(self) -> int:
        return 1 if self._blocks is not None else self.jacobian.passes

    @property
    def _size(self) -> int:
        return self.jacobian.batch.upload_size

    def _upload(self, index: int) -> Jacobian:
        if index not in self._uploads:
            self._uploads[index] = self.jacobian.select([index])
        return self._uploads[index]

    def _by_upload(self) -> dict[int, list[int]]:
        """For every upload that occurs, the rows of this operator that belong to it."""
        rows: dict[int, list[int]] = {}
        for row, sample in enumerate(self.samples):
            rows.setdefault(sample // self._size, []).append(row)
        return rows

    def _matmat(self, columns: Tensor) -> Tensor:
        if self._blocks is not None:
            return self._blocks.matmat(columns)
        count, dimension = columns.shape[2], self.shape[1]
        product = columns.new_empty(self.num_samples, self.shape[0], count)
        for index, rows in self._by_upload().items():
            padded = columns.new_zeros(self._size, dimension, len(rows), count)
            for position, row in enumerate(rows):
                padded[self.samples[row] % self._size, :, position] = columns[row]
            pushed = self._upload(index).matmat(padded.reshape(1, self._size * dimension, -1))[0].detach()
            product[rows] = pushed.reshape(self.shape[0], len(rows), count).movedim(1, 0)
        return product

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        return self._rmatmat(self._matmat(columns)) if self._blocks is None else self._blocks.gram_matmat(columns)

    def _gram_rows(self, columns: Tensor) -> Tensor:
        return self._matmat(columns).mT if self._blocks is None else self._blocks.gram_rows(columns)

    def _rmatmat(self, columns: Tensor) -> Tensor:
        if self._blocks is not None:
            return self._blocks.rmatmat(columns)
        count, dimension = columns.shape[2], self.shape[1]
        product = columns.new_empty(self.num_samples, dimension, count)
        for index, rows in self._by_upload().items():
            given = torch.cat([columns[row] for row in rows], dim=1)
            pulled = self._upload(index).rmatmat(given[None])[0].detach()
            blocks = pulled.reshape(self._size, dimension, len(rows), count)
            for position, row in enumerate(rows):
                product[row] = blocks[self.samples[row] % self._size, :, position]
        return product
