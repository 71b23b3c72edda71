"""J of uploads of several samples by layers: one tangent of a weight's shape for a whole upload, none for each sample.

    U_l = sum_i (db_i a_i^T + b_i da_i^T),   abar_i = U_l^T b_i,   bbar_i = U_l a_i

A client's samples are positions of one sample of `StructuredJacobian`; batch norm with their statistics is part of Phi.
Steps after the mean, and the mean over clients, follow (`Aggregation`). Where steps come before the mean, it is the
samples' own Jacobians that are averaged, with an object for each.

An attacker who knows all other samples faces the blocks J_j, which are the single samples' own, times their constant
shares of the loss, where neither layers nor the loss mix the samples: `UploadJacobian.by_sample`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.errors import ReleaseError
from riskaudit.jacobian.aggregation import Aggregation
from riskaudit.jacobian.base import Jacobian
from riskaudit.jacobian.structured.operator import MAX_COPIES, SeparateJacobian, StructuredJacobian, by_layers
from riskaudit.jacobian.structured.registry import UnsupportedLayer
from riskaudit.jacobian.structured.signals import Layout
from riskaudit.linalg import LinearOperator
from riskaudit.release import Batch, PerSampleRelease
from riskaudit.release.aggregation import Mean
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.mean import MeanRelease
from riskaudit.release.shares import shares_of

# Numbers in the parts' vectors that a product holds at once.
BLOCK_ENTRIES = 2**25
# Both ways to a block of J^T u agree to this many roots of the precision.
PROBE_ROOTS = 10


@final
class UploadJacobian(Jacobian):
    """J of U uploads, each [P', n d], of a model whose layers all have contractions.

    Args:
        release: see `Jacobian`.
        batch: see `Jacobian`.
        layout: of the release's model, from `find_layout`.
    """

    def __init__(self, release: MeanRelease, batch: Batch, layout: Layout) -> None:
        super().__init__(release, batch)
        self.release: MeanRelease = release
        self.layout = layout
        self.client_size = batch.upload_size // release.spec.num_clients

    @override
    def select(self, indices: list[int]) -> UploadJacobian:
        return UploadJacobian(self.release, self.batch.select(indices), self.layout)

    @override
    def mean(self) -> Tensor:
        if self.is_plain:
            return self.parts.gradients()
        return torch.stack([aggregation.mean for aggregation in self.aggregations])

    @override
    def losses(self) -> Tensor:
        return self.release.losses(self.batch)

    @override
    def smallest_eigenvalue_bound(self) -> Tensor:
        """Zeros: a bound for single samples says nothing of several."""
        return torch.zeros(self.num_samples, dtype=torch.float64, device=self.device)

    def held_bytes(self) -> int:
        """Memory that products take, about."""
        return self.parts.held_bytes()

    def by_sample(self) -> SampleBlocks | None:
        """The blocks J_j of all samples; None where samples can't be told apart, or their losses."""
        if self.release.mixes_samples:
            return None
        try:
            shares = self._shares()
            blocks = None if shares is None else SampleBlocks(self, shares)
            return blocks if blocks is not None and blocks.agree() else None
        except (UnsupportedLayer, ReleaseError):  # samples have no layers, or no losses, of their own
            return None

    @property
    def is_plain(self) -> bool:
        """Whether what leaves is one client's gradient as it is."""
        return not self.release.spec.all_steps and self.release.spec.num_clients == 1

    @cached_property
    def parts(self) -> StructuredJacobian | SeparateJacobian:
        """J of the gradients that are averaged: of every client's loss, or of every sample's where steps come first."""
        if self.release.spec.sample_steps:
            return self.of_samples
        release = self.release.with_spec(ReleaseSpec((Mean(self.client_size),)))
        batch = Batch(self.batch.inputs, self.batch.targets, self.client_size)
        if batch.num_uploads == 1:
            most_copies = 1 if release.mixes_samples else MAX_COPIES
            return StructuredJacobian(release, batch, self.layout, most_copies=most_copies)
        if release.mixes_samples:
            return SeparateJacobian(release, batch, self.layout)
        with torch.no_grad():
            alone = [release.run_together(release.parameters, upload) for upload in batch.each_upload()]
        return by_layers(release, batch, self.layout, torch.stack(alone))

    @cached_property
    def of_samples(self) -> StructuredJacobian | SeparateJacobian:
        """J of every sample's own gradient."""
        release = PerSampleRelease(self.release.model, self.release.loss)
        batch = Batch(self.batch.inputs, self.batch.targets)
        return by_layers(release, batch, self.layout, release.losses(batch).detach())

    @cached_property
    def aggregations(self) -> list[Aggregation]:
        """What is made of every upload's parts."""
        vectors = self.parts.gradients().reshape(self.num_samples, -1, self.release.context.num_entries)
        numbers = self.batch.numbers or (0,) * self.num_samples
        inputs: list[Tensor | None] = [None] * self.num_samples
        if self.release.spec.sample_steps:
            inputs = [upload.inputs for upload in self.batch.each_upload()]
        uploads = zip(numbers, vectors, inputs, strict=True)
        return [Aggregation(self.release, number, self.client_size, *rows) for number, *rows in uploads]

    @torch.no_grad()
    def _matmat(self, columns: Tensor) -> Tensor:
        if self.is_plain:
            return self.parts.matmat(columns)
        products = []
        for block in torch.split(columns, self._columns_at_once, dim=2):
            pushed = self.parts.matmat(block.reshape(self.parts.num_samples, -1, block.shape[2]))
            rows = pushed.reshape(self.num_samples, -1, *pushed.shape[1:])
            products.append(_each_column(rows, lambda upload, vectors: self.aggregations[upload].apply(vectors)))
        return torch.cat(products, dim=-1)

    @torch.no_grad()
    def _rmatmat(self, columns: Tensor) -> Tensor:
        if self.is_plain:
            return self.parts.rmatmat(columns)
        products = []
        for block in torch.split(columns, self._columns_at_once, dim=2):
            rows = _each_column(block, lambda upload, vector: self.aggregations[upload].transpose(vector))
            pulled = self.parts.rmatmat(rows.reshape(self.parts.num_samples, -1, block.shape[2]))
            products.append(pulled.reshape(self.num_samples, -1, block.shape[2]))
        return torch.cat(products, dim=-1)

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        return self.parts.gram_matmat(columns) if self.is_plain else self._rmatmat(self._matmat(columns))

    def _gram_rows(self, columns: Tensor) -> Tensor:
        return self.parts.gram_rows(columns) if self.is_plain else self._matmat(columns).mT

    @property
    def _columns_at_once(self) -> int:
        return max(1, BLOCK_ENTRIES // (self.parts.num_samples * self.release.context.num_entries))

    def _shares(self) -> Tensor | None:
        """Constant shares of the samples in their clients' losses, [U n]; None where they aren't constant."""
        if self.release.spec.sample_steps:
            return torch.ones(len(self.batch), dtype=self.dtype, device=self.device)
        shares = []
        for client in Batch(self.batch.inputs, self.batch.targets, self.client_size).each_upload():
            with torch.no_grad():
                outputs = self.release.run(self.release.parameters, client.inputs)
            shares.append(shares_of(self.release.loss, outputs, client.targets))
        known = [share for share in shares if share is not None]
        return torch.cat(known).to(self.batch.inputs) if len(known) == len(shares) else None


@final
class SampleBlocks(LinearOperator):
    """The blocks J_j [P', d] of U uploads' Jacobians, by the layers' contractions of every sample by itself.

    Args:
        uploads: J of the uploads.
        shares: what each sample's gradient is multiplied by in its client's, [U n].
        samples: positions among the U n samples; all of them if not given.
    """

    def __init__(self, uploads: UploadJacobian, shares: Tensor, samples: list[int] | None = None) -> None:
        self.samples = list(range(len(uploads.batch))) if samples is None else samples
        shape = (uploads.shape[0], uploads.batch.inputs[0].numel())
        super().__init__(len(self.samples), shape, uploads.dtype, uploads.device)
        self.uploads, self.shares = uploads, shares
        self.plain = uploads.of_samples if samples is None else uploads.of_samples.select(samples)

    @override
    def select(self, indices: list[int]) -> SampleBlocks:
        return SampleBlocks(self.uploads, self.shares, [self.samples[index] for index in indices])

    def agree(self) -> bool:
        """Whether they give the blocks of J^T u for a random u."""
        uploads = self.uploads
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(self.shape[0], generator=generator, dtype=torch.float64).to(self.shares)
        expected = uploads.rmatvec(drawn.expand(uploads.num_samples, -1)).reshape(len(self.samples), -1)
        pulled = self.rmatvec(drawn.expand(len(self.samples), -1))
        root = torch.finfo(self.dtype).eps ** 0.5
        allowed = PROBE_ROOTS * root * expected.norm(dim=1) + root**1.5 * expected.norm()
        return bool(((pulled - expected).norm(dim=1) <= allowed).all())

    @torch.no_grad()
    def smallest_eigenvalue_bound(self) -> Tensor:
        """See `Jacobian.smallest_eigenvalue_bound`; 0 where steps follow."""
        bound = self.plain.smallest_eigenvalue_bound()
        return self._factors.double().square() * bound if self.uploads.is_plain else torch.zeros_like(bound)

    @property
    def _factors(self) -> Tensor:
        return self.shares[self.samples]

    @torch.no_grad()
    def _matmat(self, columns: Tensor) -> Tensor:
        pushed = self._factors[:, None, None] * self.plain.matmat(columns)
        if self.uploads.is_plain:
            return pushed
        return _each_column(
            pushed.unsqueeze(1), lambda row, vectors: self._aggregation(row).apply_to_one(self._part(row), vectors[0])
        )

    @torch.no_grad()
    def _rmatmat(self, columns: Tensor) -> Tensor:
        if not self.uploads.is_plain:
            columns = _each_column(
                columns, lambda row, vector: self._aggregation(row).transpose_of_one(self._part(row), vector)
            )
        return self._factors[:, None, None] * self.plain.rmatmat(columns)

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        if self.uploads.is_plain:
            return self._factors[:, None, None].square() * self.plain.gram_matmat(columns)
        return self._rmatmat(self._matmat(columns))

    def _gram_rows(self, columns: Tensor) -> Tensor:
        if self.uploads.is_plain:
            return self._factors[:, None, None] * self.plain.gram_rows(columns)
        return self._matmat(columns).mT

    def _aggregation(self, row: int) -> Aggregation:
        return self.uploads.aggregations[self.samples[row] // self.uploads.batch.upload_size]

    def _part(self, row: int) -> int:
        """The part of its upload that a sample is, or is in."""
        within = self.samples[row] % self.uploads.batch.upload_size
        return within if self.uploads.release.spec.sample_steps else within // self.uploads.client_size


def _each_column(columns: Tensor, function: Callable[[int, Tensor], Tensor]) -> Tensor:
    """A function of a row's number and its [...], on [B, ..., K] column by column."""
    rows = [
        torch.stack([function(number, column) for column in row.unbind(-1)], dim=-1)
        for number, row in enumerate(columns.unbind(0))
    ]
    return torch.stack(rows)
